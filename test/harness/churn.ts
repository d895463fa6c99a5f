import { createHash, randomUUID } from 'node:crypto';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ContainerdClient } from '#shared/containerd/containerd-client.ts';
import { ContainerdError } from '#shared/containerd/containerd-error.ts';
import { ImagesService } from '#shared/containerd/gen/images.ts';
import { LeasesService } from '#shared/containerd/gen/leases.ts';
import { SnapshotsService } from '#shared/containerd/gen/snapshots.ts';
import { hexOf } from '#shared/digest/digest.ts';
import { remoteLabels } from '#services/snapshotter/snapshots/remote-labels.ts';
import { isUnavailable, UnansweredError } from './aimed-kills.ts';
import type { ChurnImage } from './churn-image.ts';
import type { TestNode } from './node.ts';
import type { Aim } from './operation-times.ts';

const NAMESPACE = 'test';
const snapshotter = 'kindling';
const RETRY_MS = 20;
const LOOK_MS = 1;
const COLLECT_TIMEOUT_MS = 30_000;
/** How long a garbage collection gets until it is asked for again. */
const COLLECTED_MS = 1_000;

/**
 * What a kubelet does with a node's images, through containerd: an image is pulled layer by layer, read, built upon, and removed,
 * upon which the node evicts its layers, since its quota is nothing. Everything hangs on a lease.
 */
export class Churn implements AsyncDisposable {
  readonly #node: TestNode;
  readonly #image: ChurnImage;
  readonly #client: ContainerdClient;
  #lease: string | undefined;
  #view: { readonly path: string; readonly mounted: AsyncDisposable } | undefined;
  #views = 0;
  #commits = 0;
  #unread: ChurnImage['files'][number][] = [];

  constructor(node: TestNode, image: ChurnImage) {
    this.#node = node;
    this.#image = image;
    this.#client = new ContainerdClient({ address: node.containerd.address, namespace: NAMESPACE });
  }

  /** Pulls what is not there yet, however often the agent goes away under it. */
  async pulled(signal: AbortSignal): Promise<void> {
    await retried(async () => await this.#pullAgain(signal), signal);
    this.#unread = shuffled(this.#image.files);
  }

  /** A pull as the command `kindling pull` makes it; nothing is there yet. */
  async pullAim(signal: AbortSignal): Promise<Aim> {
    await this.#newLease(signal);
    return { kind: 'pull', begin: async () => await this.#lazyPull(signal) };
  }

  /** The mount of one layer: from when its files are there to when its snapshot is committed. Nothing is there yet. */
  async mountAim(signal: AbortSignal): Promise<Aim> {
    await this.#newLease(signal);
    const layer = Math.floor(Math.random() * this.#image.layers.length);
    await retried(async () => await this.#prepareLayers(0, layer, signal), signal);
    const folder = this.#folders()[layer] ?? '';
    return {
      kind: 'mount',
      begin: async () => await this.#prepareLayers(layer, layer + 1, signal),
      begun: () => existsSync(folder),
    };
  }

  /** The first read of a file, which needs spans from the registry. The image is pulled. */
  async readAim(signal: AbortSignal): Promise<Aim> {
    this.#view ??= await this.#mountView(signal);
    const file = this.#unread.pop();
    if (file === undefined) throw new Error('All files of the image have been read');
    const path = join(this.#view.path, file.path);
    const before = await this.#residentSpans(signal);
    return {
      kind: 'span fetch',
      begin: async () => {
        const digest = createHash('sha256')
          .update(await readFile(path))
          .digest('hex');
        if (digest !== file.sha256) throw new Error(`${path} was read wrong: ${digest} instead of ${file.sha256}`);
      },
      confirm: async () => (await this.#residentSpans(signal)) > before,
    };
  }

  /** Commits a snapshot that stands on the image. */
  async commitAim(signal: AbortSignal): Promise<Aim> {
    const parent = this.#image.layers.at(-1)?.chainId ?? '';
    const client = this.#leased();
    const key = await this.#prepare(client, parent, signal);
    const name = `commit-${++this.#commits}`;
    return {
      kind: 'commit',
      begin: async () =>
        await client.unary(SnapshotsService.commit, { snapshotter, name, key, labels: {}, parent: '' }, signal),
    };
  }

  /** The release and eviction of all layers, once containerd has the image collected. */
  async evictionAim(signal: AbortSignal): Promise<Aim> {
    await this.#unmountView();
    return {
      kind: 'eviction',
      begin: async () => await this.removed(signal),
      begun: () => this.#isBeingReleased(),
    };
  }

  /** Has the image collected until nothing of it is on the disk. */
  async removed(signal: AbortSignal): Promise<void> {
    await this.#unmountView();
    await this.#deleteImage(signal);
    if (this.#lease !== undefined) await this.#deleteLease(this.#lease, signal);
    this.#lease = undefined;
    const deadline = performance.now() + COLLECT_TIMEOUT_MS;
    for (;;) {
      const pause = performance.now() + COLLECTED_MS;
      while (performance.now() < pause) {
        if (this.#left().length === 0) return;
        await sleep(LOOK_MS, undefined, { signal });
      }
      if (performance.now() > deadline) {
        const { log } = this.#node.kindling;
        const status = JSON.stringify(await this.#node.kindling.client.layers(signal), null, 1);
        throw new Error(
          `Still there although nobody needs it:\n${this.#left().join('\n')}\n${status}\n${log.slice(-6_000)}`,
        );
      }
      // A collection that found no agent is not made again by itself: only something that was removed since makes containerd look.
      await this.collect(signal);
    }
  }

  /** Makes containerd's garbage collector compare its snapshots with ours. */
  async collect(signal: AbortSignal): Promise<void> {
    const lease = await this.#createLease(signal);
    await this.#prepare(this.#client.underLease(lease), '', signal);
    await this.#deleteLease(lease, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#unmountView();
    this.#client.close();
  }

  async #lazyPull(signal: AbortSignal): Promise<void> {
    const { client } = this.#node.kindling;
    const request = { reference: this.#image.reference, namespace: NAMESPACE };
    try {
      for await (const event of client.pull(request, signal)) {
        if (event.kind === 'done') return;
        if (event.kind === 'layer' && event.state === 'full') throw new Error(`A layer was not lazy: ${event.reason}`);
        // containerd had not noticed that there is another agent.
        if (event.kind === 'failed' && event.code === 'unavailable') throw new UnansweredError(event.message);
        if (event.kind === 'failed') throw new Error(`Cannot pull ${request.reference}: ${event.message}`);
      }
    } catch (error) {
      const code = error instanceof Error && 'code' in error ? error.code : undefined;
      if (code !== 'unreachable' && code !== 'ECONNRESET') throw error;
    }
    throw new UnansweredError('The agent went away within a pull');
  }

  /**
   * containerd says of a snapshot that it is there without keeping it for who asked. One that only the lease of a lost pull had kept goes
   * with that lease, perhaps before the next layer names it as parent; the kubelet then pulls again.
   */
  async #pullAgain(signal: AbortSignal): Promise<void> {
    try {
      await this.#prepareLayers(0, this.#image.layers.length, signal);
    } catch (error) {
      if (!(error instanceof ContainerdError) || error.code !== 'not-found') throw error;
      await this.#prepareLayers(0, this.#image.layers.length, signal);
    }
  }

  /** As the kubelet: one Prepare after the other. */
  async #prepareLayers(from: number, to: number, signal: AbortSignal): Promise<void> {
    const client = this.#leased();
    for (const { request, chainId, parent } of this.#image.layers.slice(from, to)) {
      const key = `extract-${randomUUID()} ${chainId}`;
      const labels = remoteLabels(chainId, request);
      try {
        await client.unary(SnapshotsService.prepare, { snapshotter, key, parent, labels }, signal);
      } catch (error) {
        if (error instanceof ContainerdError && error.code === 'already-exists') continue;
        throw error;
      }
      throw new Error(`Layer ${request.layer} was not provided lazily\n${this.#node.kindling.log.slice(-4_000)}`);
    }
  }

  /** @returns the key of a new active snapshot: another one for each attempt, as clients do */
  async #prepare(client: ContainerdClient, parent: string, signal: AbortSignal): Promise<string> {
    let key = '';
    await retried(async () => {
      key = `soak-${randomUUID()}`;
      await client.unary(SnapshotsService.prepare, { snapshotter, key, parent, labels: {} }, signal);
    }, signal);
    return key;
  }

  async #mountView(signal: AbortSignal): Promise<{ readonly path: string; readonly mounted: AsyncDisposable }> {
    const path = this.#node.folder.join(`churn-${++this.#views}`);
    const top = this.#image.layers.at(-1)?.chainId ?? '';
    return { path, mounted: await this.#node.containerd.mountImage(top, snapshotter, path, signal) };
  }

  async #unmountView(): Promise<void> {
    const view = this.#view;
    this.#view = undefined;
    await view?.mounted[Symbol.asyncDispose]();
  }

  async #residentSpans(signal: AbortSignal): Promise<number> {
    const own = new Set<string>(this.#image.layers.map(({ request }) => request.layer));
    const layers = await this.#node.kindling.client.layers(signal);
    return layers.filter(({ layer }) => own.has(layer)).reduce((sum, { residentSpans }) => sum + residentSpans, 0);
  }

  #folders(): readonly string[] {
    return this.#image.layers.map(({ request }) => join(this.#node.kindling.dataDir, 'layers', hexOf(request.layer)));
  }

  /** Folders of the image's layers, and of layers that are being taken away. */
  #left(): readonly string[] {
    const root = join(this.#node.kindling.dataDir, 'layers');
    const doomed = readdirSync(root).filter((name) => name.startsWith('.tmp-'));
    return [...this.#folders().filter((folder) => existsSync(folder)), ...doomed];
  }

  #isBeingReleased(): boolean {
    const mounts = readFileSync('/proc/self/mountinfo', 'utf8');
    return this.#image.layers.some(
      ({ request }) => !mounts.includes(join(this.#node.kindling.dataDir, 'm', hexOf(request.layer).slice(0, 16))),
    );
  }

  async #newLease(signal: AbortSignal): Promise<void> {
    if (this.#lease !== undefined) throw new Error('The image is still there');
    this.#lease = await this.#createLease(signal);
    // containerd may not have noticed yet that there is another agent: then what is asked of it would not reach that.
    await retried(async () => {
      const request = { snapshotter, filters: [`name==${this.#lease}`] };
      for await (const { info } of this.#client.stream(SnapshotsService.list, request, signal)) void info;
    }, signal);
  }

  #leased(): ContainerdClient {
    if (this.#lease === undefined) throw new Error('Nothing has been pulled');
    return this.#client.underLease(this.#lease);
  }

  async #createLease(signal: AbortSignal): Promise<string> {
    const id = `soak-${randomUUID()}`;
    await this.#client.unary(LeasesService.create, { id, labels: {} }, signal);
    return id;
  }

  async #deleteImage(signal: AbortSignal): Promise<void> {
    try {
      await this.#client.unary(ImagesService.delete, { name: this.#image.reference, sync: false }, signal);
    } catch (error) {
      if (!(error instanceof ContainerdError) || error.code !== 'not-found') throw error;
    }
  }

  async #deleteLease(id: string, signal: AbortSignal): Promise<void> {
    try {
      await this.#client.unary(LeasesService.delete, { id, sync: true }, signal);
    } catch (error) {
      if (!(error instanceof ContainerdError) || error.code !== 'not-found') throw error;
    }
  }
}

/** As the kubelet: what could not be had because nobody answered is asked for again. */
async function retried(work: () => Promise<unknown>, signal: AbortSignal): Promise<void> {
  for (;;) {
    try {
      await work();
      return;
    } catch (error) {
      if (!isUnavailable(error)) throw error;
      await sleep(RETRY_MS, undefined, { signal });
    }
  }
}

function shuffled<T>(items: readonly T[]): T[] {
  return items
    .map((item) => ({ item, at: Math.random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item);
}
