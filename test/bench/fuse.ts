import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { mkdir, mkdtemp, open, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { BenchValues } from './bench.ts';
import { median, printTable } from './table.ts';

export const title = 'cost of a FUSE call and throughput: our own transport against fuse-native, in turn';
export const options = { rounds: { type: 'string', default: '5' } } as const;

const execute = promisify(execFile);
const FILE_BYTES = 256 * 1024 * 1024;
const CALLS = 4000;
const KINDS = ['calls', 'parallel', 'sequential'] as const;
const TRANSPORTS = ['device', 'native'] as const;
const NODE = ['--disable-warning=ExperimentalWarning'];
/** A clock tick of /proc/PID/stat, USER_HZ. */
const TICK_MS = 10;

interface Server {
  readonly transport: (typeof TRANSPORTS)[number];
  readonly folder: string;
  readonly child: ChildProcess;
  readonly ms: Record<(typeof KINDS)[number], number[]>;
  readonly cpuMs: Record<(typeof KINDS)[number], number[]>;
}

export async function run(values: BenchValues<typeof options>, signal: AbortSignal): Promise<unknown> {
  const rounds = Number(values.rounds);
  const folder = await mkdtemp(join(tmpdir(), 'kindling-bench-fuse-'));
  const servers: Server[] = [];
  try {
    const file = join(folder, 'layer.img');
    await fill(file);
    for (const transport of TRANSPORTS) servers.push(await serve(transport, folder, file));
    for (let round = 0; round <= rounds; round++) {
      for (const kind of KINDS) {
        for (const server of round % 2 === 0 ? servers : servers.toReversed()) {
          signal.throwIfAborted();
          const [ms, cpuMs] = await measure(kind, server);
          // The first round warms both up.
          if (round === 0) continue;
          server.ms[kind].push(ms);
          server.cpuMs[kind].push(cpuMs);
        }
      }
    }
    const result = await Promise.all(servers.map(summary));
    printTable(
      [
        'transport',
        '4 KiB call us',
        'server CPU us',
        '8 at a time us',
        'sequential GB/s',
        'server CPU s/GB',
        'RSS MiB',
      ],
      result.map((row) => [
        row.transport,
        row.callUs.toFixed(1),
        row.callCpuUs.toFixed(1),
        row.parallelUs.toFixed(1),
        row.sequentialGbS.toFixed(2),
        row.sequentialCpuS.toFixed(2),
        row.rssMiB.toFixed(0),
      ]),
    );
    return { rounds, calls: CALLS, fileBytes: FILE_BYTES, transports: result };
  } finally {
    for (const { child, folder } of servers) {
      await execute('umount', ['-l', folder]).catch(() => {});
      child.kill('SIGKILL');
    }
    await rm(folder, { recursive: true, force: true });
  }
}

/** Each page begins with its number, so that a reader sees a page that is not its own. */
async function fill(path: string): Promise<void> {
  const file = await open(path, 'w');
  const block = Buffer.alloc(1024 * 1024, 0x5a);
  for (let offset = 0; offset < FILE_BYTES; offset += block.length) {
    for (let at = 0; at < block.length; at += 4096) block.writeUInt32LE((offset + at) / 4096, at);
    await file.write(block, 0, block.length, offset);
  }
  await file.close();
}

async function serve(transport: (typeof TRANSPORTS)[number], folder: string, file: string): Promise<Server> {
  const mount = join(folder, transport);
  await mkdir(mount);
  const script = join(import.meta.dirname, 'fuse-server.ts');
  const child = spawn(process.execPath, [...NODE, script, transport, mount, file], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, UV_THREADPOOL_SIZE: '16' },
  });
  await new Promise<void>((resolve, reject) => {
    child.stdout.once('data', () => resolve());
    child.once('exit', () => reject(new Error(`The server of ${transport} did not start`)));
  });
  const empty = () => ({ calls: [], parallel: [], sequential: [] });
  return { transport, folder: mount, child, ms: empty(), cpuMs: empty() };
}

async function measure(kind: (typeof KINDS)[number], server: Server): Promise<[ms: number, cpuMs: number]> {
  const before = await cpuMs(server.child.pid ?? 0);
  const script = join(import.meta.dirname, 'fuse-client.ts');
  const path = join(server.folder, 'layer.img');
  const { stdout } = await execute(process.execPath, [...NODE, script, kind, path, String(CALLS)]);
  const { ms, wrong } = JSON.parse(stdout) as { ms: number; wrong: number };
  if (wrong > 0) throw new Error(`${server.transport}, ${kind}: ${wrong} pages are wrong`);
  return [ms, (await cpuMs(server.child.pid ?? 0)) - before];
}

async function cpuMs(pid: number): Promise<number> {
  const fields = (await readFile(`/proc/${pid}/stat`, 'utf8')).split(') ')[1]?.split(' ') ?? [];
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
}

async function summary(server: Server) {
  const status = await readFile(`/proc/${server.child.pid}/status`, 'utf8');
  const gigabytes = FILE_BYTES / 1e9;
  return {
    transport: server.transport,
    callUs: (median(server.ms.calls) / CALLS) * 1000,
    callCpuUs: (median(server.cpuMs.calls) / CALLS) * 1000,
    parallelUs: (median(server.ms.parallel) / CALLS) * 1000,
    sequentialGbS: gigabytes / (median(server.ms.sequential) / 1000),
    sequentialCpuS: median(server.cpuMs.sequential) / 1000 / gigabytes,
    rssMiB: Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1024,
  };
}
