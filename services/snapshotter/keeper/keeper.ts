/**
 * The keeper holds the FUSE session for the agent: it mounts once, hands the descriptor to each agent that it starts, and
 * outlives them all. While there is no agent, readers wait. It has no dependency and no configuration file; keep it that way.
 *
 * SIGTERM, SIGINT: ends when no container depends on the session any more; the second one ends at once (their reads get EIO).
 * SIGUSR2: replaces the agent by the version that the script's path leads to now; one that does not come up is rolled back.
 * SIGHUP: nothing.
 */
import { flushCompileCache } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';
import { chooseTransport } from '../fuse/choose.ts';
import { mountDevice } from '../fuse/device-mount.ts';
import { compileAgent, currentScript, startAgent, type AgentEnd, type AgentProcess } from './agent-process.ts';
import { parseKeeperArguments, type KeeperOptions } from './keeper-arguments.ts';
import { FrontDoor } from './front-door.ts';
import { isAnswered, lockFolder } from './keeper-lock.ts';
import { createLogRelay, type LogRelay } from './log-relay.ts';
import type { Turn } from './keeper-link.ts';
import { sessionUse } from '../mounts/session-users.ts';
import { abortSession, clearStale, unmountIdle, unmountSession } from './session-mount.ts';

/** An agent that ends within this time after an upgrade counts as one that did not come up. */
const PROBATION_MS = 10_000;
const STOP_TIMEOUT_MS = 10_000;
const BACKOFF_MS = { first: 100, most: 5000 } as const;
const DRAIN_CHECK_MS = 1000;
/** A standby starts when the agent has settled, so that it does not compete with its start. */
const STANDBY_AFTER_MS = 3000;
/** EX_CONFIG of sysexits.h: the agent says that trying again is no use. */
const EXIT_CONFIG = 78;

/** Resolves with the exit code. */
async function keep(options: KeeperOptions, log: LogRelay): Promise<number> {
  if (!(await lockFolder(options.mount))) {
    log.say('error', `Another keeper holds ${options.mount}: stop it first`);
    return 1;
  }
  const stale = await clearStale(options.mount);
  if (options.socket !== undefined && (await isAnswered(options.socket))) {
    log.say('error', `Another process answers on ${options.socket}: stop it, or set another socket (KINDLING_SOCKET)`);
    return 1;
  }
  if (stale.mounts + stale.agents > 0) log.say('warn', 'Cleared what an earlier keeper left', stale);
  const transport = await chooseTransport(options.transport);
  const device = transport === 'device' ? await mountDevice(options.mount) : undefined;
  const door = options.socket === undefined ? undefined : await FrontDoor.open(options.socket);
  log.say('info', 'Keeping the session', { mount: options.mount, transport });

  let active: AgentProcess | undefined;
  let next: AgentProcess | undefined;
  let standby: AgentProcess | undefined;
  let good: string | undefined;
  let script = await currentScript(options.agent);
  let upgrading = false;
  let asked = 0;
  const over = new AbortController();

  const cache = options.data === undefined ? undefined : `${options.data}/compiled`;
  const compile = async (from: string): Promise<void> =>
    await compileAgent({ nodeArguments: options.agent, mount: options.mount, cache }, from);
  const start = (from: string, turn: Turn): AgentProcess => {
    return startAgent(
      {
        nodeArguments: options.agent,
        script: from,
        fuseFd: device?.fd,
        mount: options.mount,
        socket: options.socket,
        turn,
        cache,
      },
      log,
    );
  };

  const warmUp = (from: string): void => {
    const agent = start(from, 'standby');
    standby = agent;
    void agent.ended.then(() => {
      if (standby === agent) standby = undefined;
    });
  };

  const pause = async (ms: number): Promise<void> => {
    await sleep(ms, undefined, { signal: over.signal }).catch(() => {});
  };

  const upgrade = async (): Promise<void> => {
    if (upgrading || over.signal.aborted) return;
    upgrading = true;
    try {
      const wanted = await currentScript(options.agent);
      log.say('info', 'Upgrade: loading the new agent', { script: wanted, from: script });
      await compile(wanted);
      const candidate = start(wanted, 'standby');
      if (!(await candidate.loaded(options.readyTimeoutMs))) {
        candidate.kill();
        log.say('error', 'Upgrade refused: the new agent does not load; the old one goes on', { script: wanted });
        return;
      }
      standby?.kill();
      standby = undefined;
      next = candidate;
      if (active?.isReady === true) good = active.script;
      await active?.stop(STOP_TIMEOUT_MS);
    } finally {
      upgrading = false;
    }
  };

  /** One agent after the other. Resolves with the exit code. */
  const serve = async (): Promise<number> => {
    await compile(script);
    let failures = 0;
    let served = false;
    while (!over.signal.aborted) {
      // Without the device the session died with its agent: the next one mounts its own.
      if (device === undefined) await unmountSession(options.mount, true);
      if (over.signal.aborted) break;
      const agent = next ?? standby ?? start(script, served ? 'next' : 'first');
      if (agent === standby) standby = undefined;
      next = undefined;
      active = agent;
      const startedAt = performance.now();
      agent.go();
      const ready = await agent.ready(options.readyTimeoutMs);
      let end: AgentEnd | undefined;
      if (ready) {
        failures = 0;
        // A session of its own per agent is a new one each time.
        served = device !== undefined;
        door?.lead(agent);
        log.say('info', 'The agent serves', {
          agent: agent.pid,
          script: agent.script,
          readyMs: Math.round(performance.now() - startedAt),
        });
        const proven = setTimeout(() => (good = agent.script), PROBATION_MS);
        const warm = options.standby ? setTimeout(warmUp, STANDBY_AFTER_MS, agent.script) : undefined;
        end = await agent.ended;
        door?.lead(undefined);
        clearTimeout(proven);
        clearTimeout(warm);
      } else {
        agent.kill();
        end = await agent.ended;
        failures++;
      }
      active = undefined;
      if (over.signal.aborted) break;
      if (next !== undefined) continue;
      // Its session was perhaps just unmounted by `end`.
      if (asked > 0) await pause(DRAIN_CHECK_MS);
      log.say('warn', ready ? 'The agent ended: starting it again' : 'The agent did not come up', {
        agent: agent.pid,
        ...end,
      });
      if (good !== undefined && good !== agent.script) {
        log.say('error', 'Upgrade rolled back', { script: agent.script, to: good });
        script = good;
        continue;
      }
      script = agent.script;
      if (!ready && good === undefined && end.code === EXIT_CONFIG) return EXIT_CONFIG;
      if (failures >= options.maxFailures) {
        log.say('error', `Given up after ${failures} agents that did not come up: readers get errors from now on`);
        await abortSession(options.mount);
        return 1;
      }
      if (failures > 0) await pause(Math.min(BACKOFF_MS.most, BACKOFF_MS.first * 2 ** (failures - 1)));
    }
    return 0;
  };

  /** Waits until nothing depends on the session, unless asked twice, and takes it away. */
  const end = async (): Promise<void> => {
    let said = -1;
    for (;;) {
      const force = asked > 1;
      const { users } = await sessionUse(options.mount);
      if (force || (users.length === 0 && (device === undefined || (await unmountSession(options.mount, false)))))
        break;
      if (users.length !== said) {
        said = users.length;
        log.say(
          'warn',
          said > 0
            ? 'Containers depend on the session: it ends after them. A second signal ends it now, with errors for them'
            : 'Something still uses the session, and no container does: it ends after that. A second signal ends it now',
          { containers: said },
        );
      }
      await sleep(DRAIN_CHECK_MS);
    }
    over.abort();
    standby?.kill();
    next?.kill();
    await active?.stop(STOP_TIMEOUT_MS);
    if (asked > 1) await abortSession(options.mount);
    await unmountSession(options.mount, true);
    if (options.data !== undefined) await unmountIdle(options.data);
  };

  let ending: Promise<void> | undefined;
  const ask = (): void => {
    asked++;
    ending ??= end();
  };
  process.on('SIGTERM', ask);
  process.on('SIGINT', ask);
  process.on('SIGUSR2', () => void upgrade());
  process.on('SIGHUP', () => {});

  // For the next start: this process may never end in an ordinary way.
  setTimeout(flushCompileCache, STANDBY_AFTER_MS).unref();
  const code = await serve();
  if (ending === undefined) {
    over.abort();
    standby?.kill();
    await unmountSession(options.mount, true);
  }
  await ending;
  await door?.close();
  await device?.close();
  return code;
}

// Its modules are compiled now, for the one that is to stay.
if (process.argv[2] === '--compile') process.exit();
const log = createLogRelay();
// Whatever is wrong with one action, the session has to stay.
process.on('uncaughtException', (error) => log.say('error', `Unexpected: ${error.stack ?? error.message}`));
try {
  process.exitCode = await keep(parseKeeperArguments(process.argv.slice(2)), log);
} catch (error) {
  log.say('error', error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}
// Lines that are under way get a moment; a log that takes none must not hold the end up.
setTimeout(() => process.exit(), 100);
