import assert from 'node:assert/strict';
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { access, copyFile, mkdir, mkdtemp, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { fileURLToPath } from 'node:url';
import { chooseTransport } from '#services/snapshotter/fuse/choose.ts';
import { keeperCommand } from '#services/snapshotter/keeper/keeper-arguments.ts';
import { createMounter } from '#services/snapshotter/mounts/mounter.ts';

const execute = promisify(execFile);
const here = dirname(fileURLToPath(import.meta.url));
const AGENT = join(here, 'keeper', 'agent.ts');
const READER = join(here, 'keeper', 'reader.ts');
const NODE = ['--disable-warning=ExperimentalWarning'];

const device = await access('/dev/fuse').then(
  () => process.getuid?.() === 0,
  () => false,
);
const skip = device && (await chooseTransport('auto')) === 'device' ? false : 'needs root, /dev/fuse and Linux 6.9';

/** Keepers and agents of all tests here start from it, in a fraction of the time. */
const COMPILED = await mkdtemp(join(tmpdir(), 'kindling-compiled-'));
after(async () => await rm(COMPILED, { recursive: true, force: true }));
const noErofs = await execute('mkfs.erofs', ['--help']).then(
  () => false,
  () => 'needs mkfs.erofs',
);

interface Line {
  readonly msg?: string;
  readonly agent?: number;
  readonly [key: string]: unknown;
}

/** A keeper under test: its log as lines, each of which can be waited for. */
class Keeper {
  readonly folder: string;
  readonly child: ChildProcess;
  readonly lines: Line[] = [];
  readonly exited: Promise<number | null>;
  #waiting: (() => void)[] = [];
  #seen = 0;

  constructor(
    folder: string,
    options: {
      agent?: string;
      maxFailures?: number;
      stderr?: number;
      env?: Record<string, string>;
      standby?: boolean;
      transport?: 'native';
    } = {},
  ) {
    this.folder = folder;
    const command = keeperCommand({
      mount: join(folder, 'layers'),
      readyTimeoutMs: 20_000,
      ...(options.maxFailures === undefined ? {} : { maxFailures: options.maxFailures }),
      ...(options.transport === undefined ? {} : { transport: options.transport }),
      ...(options.standby === undefined ? {} : { standby: options.standby }),
      agent: [...NODE, options.agent ?? AGENT],
    });
    this.child = spawn(process.execPath, command, {
      stdio: ['ignore', 'ignore', options.stderr ?? 'pipe'],
      env: { ...process.env, NODE_COMPILE_CACHE: COMPILED, ...options.env },
    });
    this.exited = new Promise((resolve) => this.child.once('exit', resolve));
    let rest = '';
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      const parts = (rest + text).split('\n');
      rest = parts.pop() ?? '';
      for (const part of parts) this.lines.push(parseLine(part));
      for (const wake of this.#waiting.splice(0)) wake();
    });
    void this.exited.then(() => {
      for (const wake of this.#waiting.splice(0)) wake();
    });
  }

  get mount(): string {
    return join(this.folder, 'layers');
  }

  /** The next line, after those that were waited for before, that has `text`. */
  async line(text: string): Promise<Line> {
    for (;;) {
      const at = this.lines.findIndex((line, index) => index >= this.#seen && (line.msg ?? '').includes(text));
      const found = this.lines[at];
      if (found !== undefined) {
        this.#seen = at + 1;
        return found;
      }
      if (this.child.exitCode !== null) {
        throw new Error(
          `The keeper ended with ${this.child.exitCode}, without "${text}":\n${JSON.stringify(this.lines, null, 1)}`,
        );
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }
}

function parseLine(text: string): Line {
  try {
    return JSON.parse(text) as Line;
  } catch {
    return { msg: text };
  }
}

/** Makes a folder and, whatever happens, leaves no process, mount or folder of the test behind. */
async function inFolder(
  use: (folder: string, own: <T extends Keeper>(keeper: T) => T) => Promise<void>,
): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'kindling-keeper-'));
  const keepers: Keeper[] = [];
  try {
    await use(folder, (keeper) => {
      keepers.push(keeper);
      return keeper;
    });
  } finally {
    for (const keeper of keepers) {
      if (keeper.child.exitCode === null && keeper.child.signalCode === null) keeper.kill('SIGKILL');
      await keeper.exited;
    }
    // An agent ends with its keeper; its descriptor keeps the session alive until then.
    for (const name of ['tree', 'layers']) await execute('umount', ['-l', join(folder, name)]).catch(() => {});
    await rm(folder, { recursive: true, force: true });
  }
}

class Reader {
  readonly #child: ChildProcess;
  readonly #output: Promise<string>;
  readonly started: Promise<void>;
  constructor(path: string, readers = 4) {
    const child = spawn(process.execPath, [...NODE, READER, path, String(readers)], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.#child = child;
    let said = '';
    this.started = new Promise((resolve) => {
      child.stdout.setEncoding('utf8').on('data', (text: string) => {
        said += text;
        if (said.includes('reading\n')) resolve();
      });
    });
    this.#output = new Promise((resolve) => child.once('close', () => resolve(said)));
  }
  async finish(): Promise<{ reads: number; wrong: number; errors: string[]; longestMs: number }> {
    this.#child.stdin?.end();
    const line = (await this.#output).split('\n').find((part) => part.startsWith('{'));
    return JSON.parse(line ?? '{}') as { reads: number; wrong: number; errors: string[]; longestMs: number };
  }
}

describe('the keeper', { skip, concurrency: false }, () => {
  it('carries readers over agents that are killed with -9', async () => {
    await inFolder(async (folder, own) => {
      const keeper = own(new Keeper(folder));
      let serving = await keeper.line('The agent serves');
      const names = await readdir(COMPILED);
      assert.ok(
        names.some((name) => name.startsWith('compiled-') && name.endsWith('agent.ts')),
        'its modules were compiled by a process of its own',
      );
      const reader = new Reader(join(keeper.mount, 'one.img'));
      await reader.started;
      for (let kill = 0; kill < 5; kill++) {
        process.kill(Number(serving.agent), 'SIGKILL');
        serving = await keeper.line('The agent serves');
      }
      const report = await reader.finish();
      assert.deepEqual([report.errors, report.wrong], [[], 0]);
      assert.ok(report.reads > 0);
      keeper.kill('SIGTERM');
      assert.equal(await keeper.exited, 0);
      assert.doesNotMatch(await readFile('/proc/self/mountinfo', 'utf8'), new RegExp(folder));
    });
  });

  it('upgrades under a reader, and rolls back a version that does not load, does not come up or dies young', async () => {
    await inFolder(async (folder, own) => {
      // Versions beside each other and a link to the current one, as an operator would install them.
      const install = async (version: string, behaviour: string): Promise<void> => {
        const target = join(here, '..', '..');
        await mkdir(join(folder, version), { recursive: true });
        await writeFile(join(folder, version, 'package.json'), await readFile(join(target, 'package.json')));
        for (const part of ['services', 'shared', 'node_modules'])
          await symlink(join(target, part), join(folder, version, part));
        await copyFile(AGENT, join(folder, version, 'agent.ts'));
        await writeFile(join(folder, version, 'behaviour'), behaviour);
      };
      const point = async (version: string): Promise<void> => {
        await symlink(version, join(folder, 'next'));
        await rename(join(folder, 'next'), join(folder, 'current'));
      };
      await install('v1', 'good');
      await install('v2', 'good');
      await install('v3', 'broken');
      await install('v4', 'crash');
      await point('v1');
      const keeper = own(new Keeper(folder, { agent: join(folder, 'current', 'agent.ts') }));
      assert.match(String((await keeper.line('The agent serves')).script), /v1/);
      const reader = new Reader(join(keeper.mount, 'one.img'), 2);
      await reader.started;

      await point('v2');
      keeper.kill('SIGUSR2');
      const upgraded = await keeper.line('The agent serves');
      assert.match(String(upgraded.script), /v2/);

      await point('v3');
      keeper.kill('SIGUSR2');
      await keeper.line('Upgrade refused');

      await point('v4');
      keeper.kill('SIGUSR2');
      await keeper.line('Upgrade rolled back');
      assert.match(String((await keeper.line('The agent serves')).script), /v2/);

      const report = await reader.finish();
      assert.deepEqual([report.errors, report.wrong], [[], 0]);
      keeper.kill('SIGTERM');
      assert.equal(await keeper.exited, 0);
    });
  });

  it('killed with -9: its agent ends, readers get EIO, and the next keeper cleans up and serves', async () => {
    await inFolder(async (folder, own) => {
      const first = own(new Keeper(folder));
      const { agent } = await first.line('The agent serves');
      const holder = spawn('sh', [
        '-c',
        'exec 3<"$0/one.img"; echo open; read line; dd bs=4096 count=1 <&3 >/dev/null',
        first.mount,
      ]);
      const holderExit = new Promise<number | null>((resolve) => holder.once('exit', resolve));
      await new Promise((resolve) => holder.stdout.once('data', resolve));
      first.kill('SIGKILL');
      await first.exited;
      await ended(Number(agent));
      holder.stdin.end('go\n');
      assert.notEqual(await holderExit, 0);

      const second = own(new Keeper(folder));
      assert.equal((await second.line('Cleared what an earlier keeper left')).mounts, 1);
      await second.line('The agent serves');
      const { stdout } = await execute('sh', ['-c', 'cd "$0" && head -c 4096 one.img | wc -c', second.mount]);
      assert.equal(stdout.trim(), '4096');
      second.kill('SIGTERM');
      assert.equal(await second.exited, 0);
    });
  });

  it('lets only one keeper hold a folder', async () => {
    await inFolder(async (folder, own) => {
      const first = own(new Keeper(folder));
      await first.line('The agent serves');
      const second = own(new Keeper(folder));
      await second.line('Another keeper holds');
      assert.equal(await second.exited, 1);
      first.kill('SIGTERM');
      assert.equal(await first.exited, 0);
    });
  });

  it('gives up after agents that never come up, and ends at once for a configuration that is wrong', async () => {
    await inFolder(async (folder, own) => {
      const crashing = own(new Keeper(folder, { env: { AGENT_BEHAVIOUR: 'crash' }, maxFailures: 2 }));
      await crashing.line('Given up after 2 agents');
      assert.equal(await crashing.exited, 1);
      const wrong = own(new Keeper(folder, { env: { AGENT_BEHAVIOUR: 'refuse' } }));
      assert.equal(await wrong.exited, 78);
      assert.doesNotMatch(await readFile('/proc/self/mountinfo', 'utf8'), new RegExp(folder));
    });
  });

  it('goes on when nobody reads its log, when it is closed, and after a hang-up', async () => {
    await inFolder(async (folder, own) => {
      // The pipe is never read: it is full after 64 KiB, which the agent writes within a few milliseconds.
      const keeper = own(new Keeper(folder, { env: { AGENT_BEHAVIOUR: 'chatty' } }));
      await keeper.line('The agent serves');
      keeper.child.stderr?.pause();
      const reader = new Reader(join(keeper.mount, 'one.img'), 2);
      await reader.started;
      keeper.kill('SIGHUP');
      const copied = await execute('sh', [
        '-c',
        'dd if="$0/one.img" bs=1M iflag=direct status=none | wc -c',
        keeper.mount,
      ]);
      assert.equal(copied.stdout.trim(), String(64 * 1024 * 1024));
      keeper.child.stderr?.destroy();
      await execute('sh', ['-c', 'dd if="$0/one.img" bs=1M iflag=direct status=none | wc -c', keeper.mount]);
      const report = await reader.finish();
      assert.deepEqual([report.errors, report.wrong], [[], 0]);
      keeper.kill('SIGTERM');
      assert.equal(await keeper.exited, 0);
    });
  });

  it('goes on after an agent that was killed while it mounted an image through its own session', {
    skip: noErofs,
  }, async () => {
    await inFolder(async (folder, own) => {
      const target = join(folder, 'tree');
      const image = join(folder, 'erofs');
      await mkdir(join(folder, 'content'));
      await mkdir(target);
      await writeFile(join(folder, 'content', 'hello'), 'world\n');
      await execute('mkfs.erofs', [image, join(folder, 'content')]);
      const env = { AGENT_BEHAVIOUR: 'mounts', AGENT_IMAGE: image, AGENT_TARGET: target };
      const keeper = own(new Keeper(folder, { env }));
      const first = await keeper.line('The agent serves');
      await keeper.line('A read of the image waits');
      // Its thread in mount(2) cannot end before the read is answered, and the keeper hears of no end until then.
      process.kill(Number(first.agent), 'SIGKILL');
      const second = await keeper.line('The agent serves');
      assert.notEqual(second.agent, first.agent);
      await ended(Number(first.agent));
      // The dying mount may have come about or not; a new one works.
      await createMounter().mountErofs(join(keeper.mount, 'erofs.img'), target, new AbortController().signal);
      assert.equal(await readFile(join(target, 'hello'), 'utf8'), 'world\n');
      keeper.kill('SIGTERM');
      assert.equal(await keeper.exited, 0);
      assert.doesNotMatch(await readFile('/proc/self/mountinfo', 'utf8'), new RegExp(folder));
    });
  });

  it('starts a new session where the transport is fuse-native and its agent was killed', async () => {
    await inFolder(async (folder, own) => {
      const keeper = own(new Keeper(folder, { transport: 'native' }));
      const script = 'cd "$0" && head -c 4096 one.img | wc -c';
      for (let round = 0; round < 2; round++) {
        const { agent } = await keeper.line('The agent serves');
        assert.equal((await execute('sh', ['-c', script, keeper.mount])).stdout.trim(), '4096');
        if (round === 0) process.kill(Number(agent), 'SIGKILL');
      }
      keeper.kill('SIGTERM');
      assert.equal(await keeper.exited, 0);
      assert.doesNotMatch(await readFile('/proc/self/mountinfo', 'utf8'), new RegExp(folder));
    });
  });

  it('hands over to an agent that stands by', async () => {
    await inFolder(async (folder, own) => {
      const keeper = own(new Keeper(folder, { standby: true }));
      const first = await keeper.line('The agent serves');
      const standby = await childOf(Number(keeper.child.pid), Number(first.agent));
      process.kill(Number(first.agent), 'SIGKILL');
      const second = await keeper.line('The agent serves');
      assert.equal(second.agent, standby);
      keeper.kill('SIGTERM');
      assert.equal(await keeper.exited, 0);
    });
  });
});

/** Waits for a process that is not our child, by looking: nothing tells. */
async function ended(pid: number): Promise<void> {
  for (;;) {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
    if (stat === '' || /\) [ZX] /.test(stat)) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function childOf(parent: number, other: number): Promise<number> {
  for (;;) {
    const { stdout } = await execute('pgrep', ['-P', String(parent)]);
    const found = stdout
      .split('\n')
      .map(Number)
      .find((pid) => pid > 0 && pid !== other);
    if (found !== undefined) return found;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
