import { lstatSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ContainerdClient } from '#shared/containerd/containerd-client.ts';
import { SnapshotsService, type Info } from '#shared/containerd/gen/snapshots.ts';
import type { Mount } from '#shared/containerd/gen/types/types.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import { createMounter, MOUNT_FLAGS } from '#services/snapshotter/mounts/mounter.ts';
import { NotLazyError, type LayerProvider } from '#services/snapshotter/snapshots/layer-provider.ts';
import { SnapshotFolders } from '#services/snapshotter/snapshots/snapshot-folders.ts';
import { SnapshotServer } from '#services/snapshotter/snapshots/snapshot-server.ts';
import { SnapshotService } from '#services/snapshotter/snapshots/snapshot-service.ts';
import { SnapshotStore } from '#services/snapshotter/snapshots/snapshot-store.ts';
import { wallClock } from '#services/snapshotter/snapshots/wall-clock.ts';
import { TempFolder } from './temp-folder.ts';

/** A provider that has no layer: every snapshot is a normal one. */
const noLayers: LayerProvider = {
  provide: (request) => Promise.reject(new NotLazyError('no-index', `no index of ${request.layer}`)),
  mountOf: (layer) => Promise.reject(new NotLazyError('no-index', `no index of ${layer}`)),
  tarOf: () => undefined,
  learnTar: () => Promise.resolve(),
  usage: () => ({ sizeBytes: 0, inodes: 0 }),
  release: () => Promise.resolve(),
};

/** The snapshots service on a socket, with a client of it: as containerd sees a proxy plugin. */
export class SnapshotRig implements AsyncDisposable {
  readonly folder: TempFolder;
  readonly address: string;
  service: SnapshotService;
  client: ContainerdClient;
  readonly #layers: LayerProvider;
  #server: SnapshotServer;
  readonly #signal: AbortSignal;
  readonly #mounter = createMounter();

  private constructor(folder: TempFolder, layers: LayerProvider, parts: Parts, signal: AbortSignal) {
    this.folder = folder;
    this.address = parts.address;
    this.service = parts.service;
    this.#server = parts.server;
    this.client = parts.client;
    this.#layers = layers;
    this.#signal = signal;
  }

  static async start(signal: AbortSignal, layers: LayerProvider = noLayers): Promise<SnapshotRig> {
    const folder = await TempFolder.create('ks');
    return new SnapshotRig(folder, layers, await startParts(folder, layers, signal), signal);
  }

  /** As after a restart of the agent: the same folder, nothing else. */
  async restart(): Promise<void> {
    await this.#stop();
    const parts = await startParts(this.folder, this.#layers, this.#signal);
    this.service = parts.service;
    this.#server = parts.server;
    this.client = parts.client;
  }

  async prepare(key: string, parent = '', labels: Record<string, string> = {}): Promise<Mount[]> {
    const request = { snapshotter: 'kindling', key, parent, labels };
    return (await this.client.unary(SnapshotsService.prepare, request, this.#signal)).mounts;
  }

  async view(key: string, parent = '', labels: Record<string, string> = {}): Promise<Mount[]> {
    const request = { snapshotter: 'kindling', key, parent, labels };
    return (await this.client.unary(SnapshotsService.view, request, this.#signal)).mounts;
  }

  async mounts(key: string): Promise<Mount[]> {
    return (await this.client.unary(SnapshotsService.mounts, { snapshotter: 'kindling', key }, this.#signal)).mounts;
  }

  async commit(name: string, key: string, labels: Record<string, string> = {}, parent = ''): Promise<void> {
    const request = { snapshotter: 'kindling', name, key, labels, parent };
    await this.client.unary(SnapshotsService.commit, request, this.#signal);
  }

  async remove(key: string): Promise<void> {
    await this.client.unary(SnapshotsService.remove, { snapshotter: 'kindling', key }, this.#signal);
  }

  async cleanup(): Promise<void> {
    await this.client.unary(SnapshotsService.cleanup, { snapshotter: 'kindling' }, this.#signal);
  }

  async stat(key: string): Promise<Info> {
    const answer = await this.client.unary(SnapshotsService.stat, { snapshotter: 'kindling', key }, this.#signal);
    if (answer.info === undefined) throw new Error(`Stat of ${key} answers nothing`);
    return answer.info;
  }

  async update(info: Info, mask: readonly string[]): Promise<Info> {
    const request = { snapshotter: 'kindling', info, updateMask: [...mask] };
    const answer = await this.client.unary(SnapshotsService.update, request, this.#signal);
    if (answer.info === undefined) throw new Error(`Update of ${info.name} answers nothing`);
    return answer.info;
  }

  async list(...filters: readonly string[]): Promise<Info[]> {
    const found: Info[] = [];
    const request = { snapshotter: 'kindling', filters: [...filters] };
    for await (const page of this.client.stream(SnapshotsService.list, request, this.#signal)) found.push(...page.info);
    return found;
  }

  async usage(key: string): Promise<{ readonly size: number; readonly inodes: number }> {
    return await this.client.unary(SnapshotsService.usage, { snapshotter: 'kindling', key }, this.#signal);
  }

  /** Mounts what the service answered and runs `work` on it; as containerd does, long lists of layers relative to a folder. */
  async mounted<T>(mounts: readonly Mount[], work: (root: string) => T | Promise<T>): Promise<T> {
    const target = this.folder.join('mnt');
    mkdirSync(target, { recursive: true });
    const cwd = process.cwd();
    try {
      for (const mount of mounts) {
        const flags =
          (mount.options.includes('ro') ? MOUNT_FLAGS.readOnly : 0) + (mount.type === 'bind' ? MOUNT_FLAGS.bind : 0);
        let data = mount.options.filter((option) => option.includes('=')).join(',');
        if (data.length > 3500) {
          process.chdir(this.folder.path);
          data = data.replaceAll(`${this.folder.path}/`, '');
        }
        const request = { source: mount.source, target, type: mount.type, data };
        await this.#mounter.mount({ ...request, flags }, this.#signal);
        if (mount.type === 'bind' && mount.options.includes('ro')) {
          await this.#mounter.mount({ ...request, flags: flags + MOUNT_FLAGS.remount }, this.#signal);
        }
      }
      return await work(target);
    } finally {
      process.chdir(cwd);
      await this.#mounter.unmount(target, {}, this.#signal);
    }
  }

  /** Prepares on `parent`, changes it with `work`, commits it as `name`. */
  async layer(name: string, parent: string, work: (root: string) => void): Promise<void> {
    await this.mounted(await this.prepare(`${name}-key`, parent), work);
    await this.commit(name, `${name}-key`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stop();
    await this.folder[Symbol.asyncDispose]();
  }

  async #stop(): Promise<void> {
    this.client.close();
    await this.#server.close();
    await this.service.close();
  }
}

interface Parts {
  readonly address: string;
  readonly service: SnapshotService;
  readonly server: SnapshotServer;
  readonly client: ContainerdClient;
}

async function startParts(folder: TempFolder, layers: LayerProvider, signal: AbortSignal): Promise<Parts> {
  const address = folder.join('s.sock');
  const service = new SnapshotService({
    store: new SnapshotStore(folder.join('snapshots.db'), wallClock),
    folders: new SnapshotFolders(folder.join('s')),
    layers,
    logger: silentLogger,
    metrics: new Registry(),
  });
  await service.start(signal);
  const server = await SnapshotServer.listen(service, address, silentLogger);
  return { address, service, server, client: new ContainerdClient({ address, namespace: 'testsuite' }) };
}

/** Everything of a small tree that a layer carries, one line each: type, mode, owner, content. */
export function describeTree(root: string, path = ''): string[] {
  const lines: string[] = [];
  for (const name of readdirSync(join(root, path)).sort()) {
    const here = join(path, name);
    const stat = lstatSync(join(root, here));
    const content = stat.isFile() ? readFileSync(join(root, here), 'utf8') : '';
    lines.push(`${here} ${stat.mode.toString(8)} ${stat.uid}:${stat.gid} ${content}`);
    if (stat.isDirectory()) lines.push(...describeTree(root, here));
  }
  return lines;
}
