/**
 * Part of `bench -- fuse`: serves one cache file through one transport, as the agent does for resident data, until its standard
 * input closes. Arguments: transport, folder to mount on, file. Prints `ready` and its process id.
 */
import { once } from 'node:events';
import { open } from 'node:fs/promises';
import { mountDevice } from '#services/snapshotter/fuse/device-mount.ts';
import { openDeviceSession } from '#services/snapshotter/fuse/device-session.ts';
import type { LayerFile, LayerFiles } from '#services/snapshotter/fuse/layer-files.ts';
import { openNativeSession } from '#services/snapshotter/fuse/native-session.ts';

const [transport, directory = '', path = ''] = process.argv.slice(2);
const cache = await open(path, 'r');
const { size } = await cache.stat();
const file: LayerFile = { name: 'layer.img', inode: 42n, sizeBytes: size };
const files: LayerFiles = {
  list: () => [file],
  byName: (name) => (name === file.name ? file : undefined),
  byInode: (inode) => (inode === file.inode ? file : undefined),
  async read(_, offset, length, _signal, into = Buffer.allocUnsafe(length)) {
    const { buffer, bytesRead } = await cache.read(into, 0, length, offset);
    return buffer.subarray(0, bytesRead);
  },
};
const events = {
  diskSpace: () => ({ totalBytes: size, freeBytes: 0 }),
  unknownFile: () => {},
  readFailed: (_: LayerFile, offset: number, length: number, error: unknown) => console.error(offset, length, error),
};
const device = transport === 'device' ? await mountDevice(directory) : undefined;
const session = device
  ? openDeviceSession({ fd: device.fd, directory, files, events })
  : await openNativeSession({ directory, files, events }, new AbortController().signal);
console.log(`ready ${process.pid}`);
process.stdin.resume();
await once(process.stdin, 'end');
await session.close();
process.kill(process.pid, 'SIGKILL');
