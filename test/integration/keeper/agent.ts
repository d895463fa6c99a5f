/**
 * A small agent for the keeper's tests: serves pattern files through the descriptor that it is given.
 *
 * AGENT_BEHAVIOUR says what is wrong with it: `crash` (at once), `mute` (never ready),
 * `refuse` (78, a configuration that is wrong), `chatty` (floods the log), `mounts` (the first one mounts AGENT_IMAGE, which it
 * serves as `erofs.img`, on AGENT_TARGET by itself, and answers no read of it; later ones answer).
 */
import { openDeviceSession } from '#services/snapshotter/fuse/device-session.ts';
import type { FuseEvents } from '#services/snapshotter/fuse/fuse-session.ts';
import type { LayerFiles } from '#services/snapshotter/fuse/layer-files.ts';
import { openNativeSession } from '#services/snapshotter/fuse/native-session.ts';
import { createTestFiles } from '#services/snapshotter/fuse/test-files.ts';
import { connectKeeper } from '#services/snapshotter/keeper/keeper-link.ts';
import { createMounter } from '#services/snapshotter/mounts/mounter.ts';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const link = connectKeeper();
if (link === undefined) throw new Error('Only a keeper starts this');
// A version of the agent, as the upgrade test lays it out, has its behaviour in a file beside its script.
const file = join(here, 'behaviour');
const behaviour = existsSync(file) ? readFileSync(file, 'utf8').trim() : (process.env['AGENT_BEHAVIOUR'] ?? 'good');

if (link.turn === 'compile') process.exit();
if (behaviour === 'refuse') process.exit(78);
if (behaviour === 'broken') throw new Error('This version does not load');
const stop = new AbortController();
process.on('SIGTERM', () => stop.abort(new Error('told to end')));
link.lost.addEventListener('abort', () => process.kill(process.pid, 'SIGKILL'));
await link.waitForGo(new AbortController().signal);
if (behaviour === 'crash') process.exit(1);

const image = process.env['AGENT_IMAGE'];
const target = process.env['AGENT_TARGET'] ?? '';
const isFirst = behaviour === 'mounts' && !existsSync(`${target}.first`);
const patterns = createTestFiles({ 'one.img': 64 * 1024 * 1024, 'two.img': 3_000_001, 'erofs.img': 4 * 1024 * 1024 });
const files: LayerFiles = {
  ...patterns,
  async read(file, offset, length, signal) {
    if (file.name !== 'erofs.img' || image === undefined) return await patterns.read(file, offset, length, signal);
    if (isFirst) {
      console.error('A read of the image waits');
      await new Promise(() => {});
    }
    const content = Buffer.alloc(file.sizeBytes);
    readFileSync(image).copy(content);
    return content.subarray(offset, offset + length);
  },
};
const events: FuseEvents = {
  diskSpace: () => ({ totalBytes: 2 ** 40, freeBytes: 2 ** 39 }),
  unknownFile: (inode) => console.error(`unknown file ${inode}`),
  readFailed: (_, offset, length, error) => console.error(`read ${offset}+${length}: ${String(error)}`),
};
const directory = process.env['KINDLING_KEEPER'] ?? '';
const session = link.fuse
  ? openDeviceSession({ ...link.fuse, files, events })
  : await openNativeSession({ directory, files, events }, stop.signal);
if (behaviour !== 'mute') link.ready();
if (isFirst) {
  writeFileSync(`${target}.first`, '');
  await createMounter().mountErofs(join(directory, 'erofs.img'), target, new AbortController().signal);
}
if (behaviour === 'chatty') setInterval(() => console.error('x'.repeat(8192)), 1);
const keepAlive = setInterval(() => {}, 1000);
await Promise.race([
  session.closed,
  new Promise<void>((resolve) => stop.signal.addEventListener('abort', () => resolve(), { once: true })),
]);
clearInterval(keepAlive);
await session.close();
await link.leave();
