import { parseArgs } from 'node:util';

/** What the keeper is told, all of it on its command line: it reads no configuration that could be wrong. */
export interface KeeperOptions {
  /** Where the folder of layer images is mounted; made when missing. */
  readonly mount: string;
  /** Mounts below it that nobody uses are taken away at the end; the agent's compiled modules are kept in `compiled`. */
  readonly data: string | undefined;
  /** Socket that is held open for the agent (see FrontDoor); undefined: the agent makes its own. */
  readonly socket: string | undefined;
  readonly transport: 'auto' | 'device' | 'native';
  /** Keep a second agent loaded that takes over at once; costs the memory of an idle node. */
  readonly standby: boolean;
  /** An agent that is not ready by then is killed. */
  readonly readyTimeoutMs: number;
  /** After this many agents in a row that never got ready the session is given up: readers get EIO instead of waiting for ever. */
  readonly maxFailures: number;
  /** Node's arguments of the agent: flags, script, the script's arguments. A script that is a link is followed anew at each upgrade. */
  readonly agent: readonly string[];
}

export class KeeperArgumentsError extends Error {
  override readonly name = 'KeeperArgumentsError';
  readonly code = 'invalid';
}

const DEFAULTS = { readyTimeoutMs: 15_000, maxFailures: 10 } as const;
const KEEPER_SCRIPT = new URL('keeper.ts', import.meta.url).pathname;
/** The keeper does next to nothing: the smallest heap that node is content with. */
const KEEPER_FLAGS = ['--max-semi-space-size=1', '--max-old-space-size=24', '--disable-warning=ExperimentalWarning'];

/**
 * Flags of node for the agent. A small young generation: V8's default would let it grow by some 30 MiB. The collector is exposed for
 * MemoryTrimmer. A start takes a second: V8 must not use a processor meanwhile to mark the whole heap, as it would whenever that has
 * grown by a few MiB, nor to compile for the long run what has run a moment. A flag that is set later would make every compiled module
 * in the cache worthless.
 */
export const AGENT_FLAGS = [
  '--disable-warning=ExperimentalWarning',
  '--max-semi-space-size=4',
  '--expose-gc',
  '--initial-old-space-size=32',
  '--invocation-count-for-turbofan=30000',
  '--wasm-tiering-budget=200000000',
] as const;

/** The arguments for `process.execPath` that start a keeper. */
export function keeperCommand(
  options: Pick<KeeperOptions, 'mount' | 'agent'> & Partial<Omit<KeeperOptions, 'mount' | 'agent'>>,
): readonly string[] {
  const { mount, data, socket, transport, standby, readyTimeoutMs, maxFailures, agent } = options;
  return [
    ...KEEPER_FLAGS,
    KEEPER_SCRIPT,
    `--mount=${mount}`,
    ...(data === undefined ? [] : [`--data=${data}`]),
    ...(socket === undefined ? [] : [`--socket=${socket}`]),
    ...(transport === undefined ? [] : [`--transport=${transport}`]),
    ...(standby === true ? ['--standby'] : []),
    ...(readyTimeoutMs === undefined ? [] : [`--ready-timeout-ms=${readyTimeoutMs}`]),
    ...(maxFailures === undefined ? [] : [`--max-failures=${maxFailures}`]),
    '--',
    ...agent,
  ];
}

/**
 * The environment to start it with: with a cache of compiled modules, node needs no TypeScript compiler in memory, which is a third
 * of the keeper's size and most of its start.
 */
export function keeperEnvironment(data: string, env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return { NODE_COMPILE_CACHE: `${data}/compiled`, MALLOC_ARENA_MAX: '2', ...env };
}

/** The arguments for `process.execPath` that only put the keeper's compiled modules into the cache, for one that starts after it. */
export function keeperCompileCommand(): readonly string[] {
  return [...KEEPER_FLAGS, KEEPER_SCRIPT, '--compile'];
}

/** @throws KeeperArgumentsError */
export function parseKeeperArguments(args: readonly string[]): KeeperOptions {
  const { values, positionals } = parse(args);
  if (!values.mount?.startsWith('/')) throw new KeeperArgumentsError('--mount=DIR is required, as an absolute path');
  if (values.data !== undefined && !values.data.startsWith('/')) {
    throw new KeeperArgumentsError('--data=DIR must be an absolute path');
  }
  if (values.socket !== undefined && !values.socket.startsWith('/')) {
    throw new KeeperArgumentsError('--socket=PATH must be an absolute path');
  }
  const transport = values.transport ?? 'auto';
  if (transport !== 'auto' && transport !== 'device' && transport !== 'native') {
    throw new KeeperArgumentsError(`--transport=${transport} is none of auto, device, native`);
  }
  if (!positionals.some((argument) => !argument.startsWith('-'))) {
    throw new KeeperArgumentsError(
      'The agent is missing: keeper.ts --mount=DIR -- [node flags] agent-main.ts [arguments]',
    );
  }
  return {
    mount: clean(values.mount),
    data: values.data === undefined ? undefined : clean(values.data),
    socket: values.socket,
    transport,
    standby: values.standby ?? false,
    readyTimeoutMs: positive('--ready-timeout-ms', values['ready-timeout-ms'], DEFAULTS.readyTimeoutMs),
    maxFailures: positive('--max-failures', values['max-failures'], DEFAULTS.maxFailures),
    agent: positionals,
  };
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        mount: { type: 'string' },
        data: { type: 'string' },
        socket: { type: 'string' },
        transport: { type: 'string' },
        standby: { type: 'boolean' },
        'ready-timeout-ms': { type: 'string' },
        'max-failures': { type: 'string' },
      },
    });
  } catch (cause) {
    throw new KeeperArgumentsError(cause instanceof Error ? cause.message : String(cause), { cause });
  }
}

function positive(name: string, text: string | undefined, otherwise: number): number {
  if (text === undefined) return otherwise;
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new KeeperArgumentsError(`${name}=${text} is not a positive whole number`);
  return Number(text);
}

function clean(path: string): string {
  return path.replace(/\/+/g, '/').replace(/(.)\/$/, '$1');
}
