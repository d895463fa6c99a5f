import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { access, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { chooseTransport, type FuseTransport } from './choose.ts';
import { mountDevice } from './device-mount.ts';
import { openDeviceSession } from './device-session.ts';
import type { FuseSession } from './fuse-session.ts';
import { openNativeSession } from './native-session.ts';
import { createTestFiles, patternBytes } from './test-files.ts';

const execute = promisify(execFile);
/**
 * Runs `script` in `folder`, in a shell that goes there by itself: with spawn's `cwd` this process would wait, blocked, until
 * its child has changed into the very mount that this process serves.
 */
const shell = async (folder: string, script: string): Promise<Buffer> => {
  const options = { encoding: 'buffer', maxBuffer: 1 << 22 } as const;
  return (await execute('sh', ['-c', `cd "$0" && ${script}`, folder], options)).stdout;
};
const lines = (output: Buffer): readonly string[] => output.toString().trim().split('\n');
const SIZES = {
  'aa.img': 3_000_001,
  'bb.img': 4096,
  'once.img': 1_000_000,
  'empty.img': 0,
  'slow.img': 100_000,
  'bad.img': 8192,
  'gone.img': 4096,
};
const usable =
  process.getuid?.() === 0 &&
  (await access('/dev/fuse').then(
    () => true,
    () => false,
  ));
const never = new AbortController().signal;

// Everything is looked at from another process: a call on our own mount from here would wait for itself.
for (const transport of ['device', 'native'] as const) suite(transport);

function suite(transport: FuseTransport): void {
  const skip = usable ? false : 'needs root and /dev/fuse';
  describe(`the ${transport} transport`, { skip }, () => {
    const files = createTestFiles(SIZES);
    const failed: string[] = [];
    const unknown: bigint[] = [];
    let directory = '';
    let session: FuseSession;
    let release = async (): Promise<void> => {};

    before(async () => {
      directory = await mkdtemp(join(tmpdir(), `kindling-fuse-${transport}-`));
      const events = {
        diskSpace: () => ({ totalBytes: 10 * 2 ** 30, freeBytes: 3 * 2 ** 30 }),
        unknownFile: (inode: bigint) => void unknown.push(inode),
        readFailed: (file: { readonly name: string }) => void failed.push(file.name),
      };
      if (transport === 'native') {
        session = await openNativeSession({ directory, files, events }, never);
        release = async () => await session.close();
        return;
      }
      const device = await mountDevice(directory);
      session = openDeviceSession({ fd: device.fd, directory, files, events, outstanding: 2 });
      release = async () => {
        await execute('umount', ['-l', directory]);
        await session.closed;
        await device.close();
      };
    });
    after(async () => {
      await release();
      await rm(directory, { recursive: true });
    });

    it('lists the files with their sizes, for root only', async () => {
      const kind = (size: number) => (size === 0 ? 'regular empty file' : 'regular file');
      assert.deepEqual(
        lines(await shell(directory, `stat -c '%n %s %a %F' ${Object.keys(SIZES).join(' ')}`)),
        Object.entries(SIZES).map(([name, size]) => `${name} ${size} 400 ${kind(size)}`),
      );
      assert.deepEqual(lines(await shell(directory, 'LC_ALL=C ls -a')), ['.', '..', ...Object.keys(SIZES)].toSorted());
    });

    it('serves every byte, whole and at odd offsets', async () => {
      const names = ['aa.img', 'bb.img', 'empty.img'] as const;
      assert.deepEqual(
        lines(await shell(directory, `sha256sum ${names.join(' ')}`)),
        names.map((name) => `${sha256(patternBytes(0, SIZES[name]))}  ${name}`),
      );
      const part = await shell(
        directory,
        'dd if=aa.img iflag=skip_bytes,count_bytes skip=1234567 count=54321 status=none',
      );
      assert.ok(part.equals(patternBytes(1_234_567, 54_321)));
      assert.ok((await shell(directory, 'tail -c 10 aa.img')).equals(patternBytes(SIZES['aa.img'] - 10, 10)));
    });

    it('is asked for what is read, and not for what lies behind it', async () => {
      const before = session.stats().bytes;
      await shell(directory, 'dd if=once.img bs=4096 skip=100 count=1 status=none');
      assert.equal(session.stats().bytes - before, 4096);
    });

    it('has nothing under other names, and nothing to write to', async () => {
      await assert.rejects(shell(directory, 'cat zz.img'), /No such file/);
      await assert.rejects(
        shell(directory, 'dd if=/dev/zero of=bb.img conv=notrunc count=1'),
        /Read-only|not permitted|denied/,
      );
      await assert.rejects(shell(directory, 'mkdir new'), /./);
    });

    it('shows the real size of the disk', async () => {
      const [block, total, free] = lines(await shell(directory, "stat -f -c '%S\n%b\n%f' .")).map(Number);
      assert.equal((block ?? 0) * (total ?? 0), 10 * 2 ** 30);
      assert.equal((block ?? 0) * (free ?? 0), 3 * 2 ** 30);
    });

    it('lets other reads pass while one waits', async () => {
      const gate = files.gate('slow.img');
      const slow = shell(directory, 'sha256sum slow.img');
      await gate.entered;
      await shell(directory, 'cat bb.img');
      await shell(directory, 'dd if=aa.img bs=4096 skip=300 count=1 iflag=direct status=none');
      gate.open();
      assert.match((await slow).toString(), new RegExp(sha256(patternBytes(0, SIZES['slow.img']))));
    });

    it('keeps the bytes of reads apart that run at the same time', async () => {
      const read = 'dd if=aa.img iflag=direct bs=64k status=none | sha256sum';
      const sums = await Promise.all(Array.from({ length: 4 }, async () => lines(await shell(directory, read))[0]));
      assert.deepEqual(
        sums,
        sums.map(() => `${sha256(patternBytes(0, SIZES['aa.img']))}  -`),
      );
    });

    it('answers EIO for bytes that cannot be had, and says which', async () => {
      files.fail('bad.img');
      await assert.rejects(shell(directory, 'cat bad.img'), /Input\/output error/);
      assert.ok(failed.includes('bad.img'));
      await shell(directory, 'dd if=bb.img iflag=direct bs=4096 count=1 status=none');
    });

    it('answers for a file that was taken away, and for it alone', async () => {
      const file = files.byName('gone.img');
      assert.ok(file);
      const script = 'cd "$0" && exec 3<gone.img && echo open && read line && cat <&3';
      const holder = spawn('sh', ['-c', script, directory], { stdio: 'pipe' });
      const exited = new Promise<number | null>((resolve) => holder.once('close', resolve));
      await new Promise((resolve) => holder.stdout.once('data', resolve));
      files.remove('gone.img');
      await session.invalidate(file);
      let said = '';
      holder.stderr.on('data', (text) => (said += String(text)));
      holder.stdin.end('go\n');
      assert.notEqual(await exited, 0);
      assert.match(said, /error|No such file/i);
      if (transport === 'device') assert.deepEqual(unknown, [file.inode]);
      await shell(directory, 'stat bb.img');
    });

    it('ends the wait of a reader that was killed', async (t) => {
      if (transport === 'native') return t.skip('libfuse 2.9 hands no interrupt on');
      const gate = files.gate('slow.img');
      const script = 'cd "$0" && exec dd if=slow.img iflag=direct bs=8192 count=1 of=/dev/null';
      const reader = spawn('sh', ['-c', script, directory], { stdio: 'ignore' });
      const exited = new Promise<string | null>((resolve) => reader.once('exit', (_, signal) => resolve(signal)));
      await gate.entered;
      reader.kill('SIGKILL');
      assert.equal(await exited, 'SIGKILL');
      gate.open();
    });

    it('does not fail a read because its process got a signal', async (t) => {
      if (transport === 'native') return t.skip('libfuse 2.9 hands no interrupt on');
      const gate = files.gate('slow.img');
      const script = 'cd "$0" && exec dd if=slow.img iflag=direct bs=8192 count=1 status=none';
      const reader = spawn('sh', ['-c', script, directory], { stdio: ['ignore', 'pipe', 'ignore'] });
      const output: Buffer[] = [];
      reader.stdout.on('data', (part: Buffer) => void output.push(part));
      const exited = new Promise<number | null>((resolve) => reader.once('close', resolve));
      await gate.entered;
      // dd handles it by printing its counters.
      reader.kill('SIGUSR1');
      await shell(directory, 'stat bb.img');
      gate.open();
      assert.equal(await exited, 0);
      assert.ok(Buffer.concat(output).equals(patternBytes(0, 8192)));
    });

    it('counts what it did', () => {
      const stats = session.stats();
      assert.ok(stats.reads > 0 && stats.bytes > SIZES['aa.img']);
      assert.equal(stats.waiting, 0);
    });
  });
}

describe('the choice of the transport', () => {
  it('takes fuse-native where the kernel cannot resend', async () => {
    assert.equal(await chooseTransport('auto', '6.8.0-45-generic'), 'native');
    assert.equal(await chooseTransport('auto', '5.15.0'), 'native');
    assert.equal(await chooseTransport('auto', 'unknown'), 'native');
  });
  it('obeys the setting', async () => {
    assert.equal(await chooseTransport('native', '6.18.0'), 'native');
    assert.equal(await chooseTransport('device', '5.4.0'), 'device');
  });
});

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
