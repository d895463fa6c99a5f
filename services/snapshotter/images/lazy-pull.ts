import { randomUUID } from 'node:crypto';
import type { Digest } from '#shared/digest/digest.ts';
import type { ContainerdClient } from '#shared/containerd/containerd-client.ts';
import { ContainerdError } from '#shared/containerd/containerd-error.ts';
import { ContentStore } from '#shared/containerd/content-store.ts';
import { DiffService } from '#shared/containerd/gen/diff.ts';
import { Kind, SnapshotsService } from '#shared/containerd/gen/snapshots.ts';
import type { Mount } from '#shared/containerd/gen/types/types.ts';
import { chainIds, ImageRecords, parseImageConfig } from '#shared/containerd/image-records.ts';
import { withLease } from '#shared/containerd/leases.ts';
import type { Descriptor, Platform } from '#shared/registry/manifest.ts';
import { formatPlatform, runsOn } from '#shared/registry/platform.ts';
import { formatReference, parseReference, type Reference } from '#shared/registry/reference.ts';
import type { FetchedImage, RegistryClient } from '#shared/registry/registry-client.ts';
import { RegistryError } from '#shared/registry/registry-error.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { LayerRequest, NotLazyError } from '../snapshots/layer-provider.ts';
import { remoteLabels } from '../snapshots/remote-labels.ts';
import type { RemoteSnapshots } from '../snapshots/remote-snapshots.ts';

export interface LazyPullDeps {
  readonly registry: Pick<RegistryClient, 'platformManifest' | 'blob' | 'blobStream'>;
  readonly containerd: ContainerdClient;
  readonly snapshots: Pick<RemoteSnapshots, 'withLayers' | 'settle' | 'provide'>;
  /** Our name as a proxy plugin of containerd. */
  readonly snapshotter: string;
  readonly logger: Logger;
}

export interface PulledLayer {
  readonly layer: Digest;
  readonly sizeBytes: number;
  /** `present`: its snapshot was there before. `full`: downloaded and unpacked by containerd. */
  readonly how: 'present' | 'lazy' | 'full';
  /** Why it is not lazy. */
  readonly reason: string | undefined;
  readonly ms: number;
}

export interface PullReport {
  /** Name of containerd's image record. */
  readonly image: string;
  readonly manifest: Digest;
  /** Chain ID of the top layer. */
  readonly topSnapshot: string;
  readonly layers: readonly PulledLayer[];
  readonly resolveMs: number;
  readonly totalMs: number;
}

export interface PullOptions {
  readonly platform: Platform;
  readonly onProgress?: (layer: PulledLayer, done: number, total: number) => void;
}

/** In the names of the leases of pulls. */
export const PULL_PURPOSE = 'pull';
/** A pull that has to download everything over a slow line ends by then; past it, its leftovers are garbage. */
const LEASE_EXPIRY_MS = 6 * 60 * 60 * 1000;

/**
 * Pulls images without their layers' data: containerd gets the image record, manifest and configuration, and for each layer
 * a snapshot that fills in as it is read. A layer that cannot be lazy is downloaded and unpacked, so a pull always works.
 */
export class LazyPull {
  readonly #deps: LazyPullDeps;
  readonly #content: ContentStore;
  readonly #images: ImageRecords;

  constructor(deps: LazyPullDeps) {
    this.#deps = deps;
    this.#content = new ContentStore(deps.containerd);
    this.#images = new ImageRecords(deps.containerd, this.#content);
  }

  /** @throws ImageReferenceError, RegistryError, ContainerdError; the image record is only written when all layers are there. */
  async pull(text: string, options: PullOptions, signal: AbortSignal): Promise<PullReport> {
    const started = performance.now();
    const reference = parseReference(text);
    const name = formatReference(reference);
    const image = await this.#deps.registry.platformManifest(reference, options.platform, signal);
    const { config: configDescriptor, layers } = image.parsed;
    const configBytes = await this.#deps.registry.blob(reference.repository, configDescriptor, signal);
    const { diffIds, platform } = parseImageConfig(configBytes, name);
    // Of an index, the entry was chosen by what the index says.
    if (image.index === undefined && platform !== undefined && !runsOn(platform, options.platform)) {
      throw new RegistryError(
        'not-found',
        `${name} has no image for ${formatPlatform(options.platform)}; it is for ${formatPlatform(platform)}`,
        { host: reference.host, repository: reference.path },
      );
    }
    if (diffIds.length !== layers.length) {
      throw new Error(
        `Cannot pull ${name}: its manifest has ${layers.length} layers, its configuration ${diffIds.length}; is it a container image?`,
      );
    }
    const resolveMs = performance.now() - started;
    const chain = chainIds(diffIds);
    const requests = layers.map((layer) => requestOf(name, image, layer));
    const present = await Promise.all(chain.map((id) => this.#isCommitted(this.#deps.containerd, id, signal)));
    const missing = requests.filter((_, i) => present[i] !== true);
    const pulled = await withLease(
      this.#deps.containerd,
      { purpose: PULL_PURPOSE, expiryMs: LEASE_EXPIRY_MS },
      signal,
      async (leased) =>
        await this.#deps.snapshots.withLayers(missing, signal, async (outcomes) => {
          const ingest = this.#ingest(leased, reference, image, configBytes, chain, signal);
          // Awaited below; a layer that fails first must not leave it unhandled.
          ingest.catch(() => undefined);
          const done: PulledLayer[] = [];
          for (const [i, request] of requests.entries()) {
            const step = {
              request,
              descriptor: layers[i],
              outcome: outcomes[missing.indexOf(request)],
              diffId: diffIds[i],
            };
            const layer = await this.#layer(leased, reference, step, chain[i - 1] ?? '', chain[i] ?? '', signal);
            done.push(layer);
            options.onProgress?.(layer, done.length, requests.length);
          }
          await ingest;
          const target = image.index?.descriptor ?? image.descriptor;
          await this.#images.put(name, target, {}, signal);
          return done;
        }),
    );
    return {
      image: name,
      manifest: image.descriptor.digest,
      topSnapshot: chain.at(-1) ?? '',
      layers: pulled,
      resolveMs,
      totalMs: performance.now() - started,
    };
  }

  /** Configuration, manifest and index, linked with the labels that containerd's garbage collector follows. */
  async #ingest(
    leased: ContainerdClient,
    reference: Reference,
    image: FetchedImage,
    configBytes: Uint8Array,
    chain: readonly Digest[],
    signal: AbortSignal,
  ): Promise<void> {
    const content = new ContentStore(leased);
    const source = { [`containerd.io/distribution.source.${reference.host}`]: reference.path };
    const { config, layers } = image.parsed;
    const top = chain.at(-1);
    await content.ingest(
      config,
      configBytes,
      { ...source, ...(top === undefined ? {} : { [`containerd.io/gc.ref.snapshot.${this.#deps.snapshotter}`]: top }) },
      signal,
    );
    const layerRefs = layers.map((layer, i) => [`containerd.io/gc.ref.content.l.${i}`, layer.digest] as const);
    await content.ingest(
      image.descriptor,
      image.bytes,
      { ...source, 'containerd.io/gc.ref.content.config': config.digest, ...Object.fromEntries(layerRefs) },
      signal,
    );
    if (image.index === undefined) return;
    await content.ingest(
      image.index.descriptor,
      image.index.bytes,
      { ...source, 'containerd.io/gc.ref.content.m.0': image.descriptor.digest },
      signal,
    );
  }

  async #layer(
    leased: ContainerdClient,
    reference: Reference,
    step: {
      readonly request: LayerRequest;
      readonly descriptor: Descriptor | undefined;
      readonly outcome: Promise<NotLazyError | undefined> | undefined;
      readonly diffId: Digest | undefined;
    },
    parent: string,
    chainId: string,
    signal: AbortSignal,
  ): Promise<PulledLayer> {
    const started = performance.now();
    const { request, descriptor, diffId } = step;
    const result = (how: PulledLayer['how'], reason?: string): PulledLayer => ({
      layer: request.layer,
      sizeBytes: request.sizeBytes ?? 0,
      how,
      reason,
      ms: performance.now() - started,
    });
    if (await this.#isCommitted(leased, chainId, signal)) {
      await this.#deps.snapshots.settle(chainId, parent, request, signal);
      return result('present');
    }
    const key = `extract-kindling-${randomUUID()} ${chainId}`;
    const { snapshotter } = this.#deps;
    const labels = remoteLabels(chainId, request);
    let mounts: Mount[];
    try {
      const answer = await leased.unary(SnapshotsService.prepare, { snapshotter, key, parent, labels }, signal);
      mounts = answer.mounts;
    } catch (error) {
      if (!(error instanceof ContainerdError) || error.code !== 'already-exists') throw error;
      // containerd has found and linked the committed snapshot; or it knows one by that name, and did not ask whether it is there.
      if (!(await this.#isCommitted(leased, chainId, signal))) {
        await this.#bringBack(leased, chainId, parent, request, signal);
      }
      return result('lazy');
    }
    if (descriptor === undefined || diffId === undefined) throw new Error(`No descriptor of layer ${request.layer}`);
    const why = await step.outcome?.catch((error: Error) => error);
    const reason = why?.message ?? 'the snapshotter answered normal mounts; see `kindling status`';
    try {
      await this.#unpack(leased, reference, descriptor, diffId, mounts, signal);
      await leased.unary(SnapshotsService.commit, { snapshotter, name: chainId, key, labels: {}, parent: '' }, signal);
    } catch (error) {
      await leased
        .unary(SnapshotsService.remove, { snapshotter, key }, AbortSignal.timeout(5000))
        .catch(() => undefined);
      // Another pull of the same layer was quicker.
      if (error instanceof ContainerdError && error.code === 'already-exists') return result('present');
      throw error;
    }
    this.#deps.logger.info({ layer: request.layer, image: request.imageReference, reason }, 'layer pulled whole');
    return result('full', reason);
  }

  /** Makes a snapshot anew that containerd remembers and that our data folder has lost. */
  async #bringBack(
    leased: ContainerdClient,
    chainId: string,
    parent: string,
    request: LayerRequest,
    signal: AbortSignal,
  ): Promise<void> {
    const labels = remoteLabels(chainId, request);
    await this.#deps.snapshots.provide({ target: chainId, layer: request }, parent, labels, signal);
    if (await this.#isCommitted(leased, chainId, signal)) {
      this.#deps.logger.warn({ snapshot: chainId, image: request.imageReference }, 'a lost snapshot was made anew');
      return;
    }
    throw new Error(
      `Cannot pull ${request.imageReference}: containerd remembers its snapshot ${chainId}, which our data folder has lost, and it cannot be made anew as it was. Remove the image and its containers, then pull again`,
    );
  }

  async #isCommitted(leased: ContainerdClient, chainId: string, signal: AbortSignal): Promise<boolean> {
    try {
      const { snapshotter } = this.#deps;
      const { info } = await leased.unary(SnapshotsService.stat, { snapshotter, key: chainId }, signal);
      return info?.kind === Kind.COMMITTED;
    } catch (error) {
      if (error instanceof ContainerdError && error.code === 'not-found') return false;
      throw error;
    }
  }

  async #unpack(
    leased: ContainerdClient,
    reference: Reference,
    descriptor: Descriptor,
    diffId: Digest,
    mounts: Mount[],
    signal: AbortSignal,
  ): Promise<void> {
    const blob = this.#deps.registry.blobStream(reference.repository, descriptor, signal);
    await new ContentStore(leased).ingest(
      descriptor,
      blob,
      { [`containerd.io/distribution.source.${reference.host}`]: reference.path },
      signal,
    );
    const diff = {
      mediaType: descriptor.mediaType,
      digest: descriptor.digest,
      size: descriptor.size,
      annotations: { ...descriptor.annotations },
    };
    const { applied } = await leased.unary(DiffService.apply, { diff, mounts, payloads: {}, syncFs: false }, signal);
    if (applied?.digest !== diffId) {
      throw new Error(
        `Cannot use layer ${descriptor.digest} of ${formatReference(reference)}: it unpacks to ${applied?.digest ?? 'nothing'}, the configuration says ${diffId}`,
      );
    }
  }
}

function requestOf(name: string, image: FetchedImage, layer: Descriptor): LayerRequest {
  return {
    imageReference: name,
    layer: layer.digest,
    sizeBytes: layer.size,
    mediaType: layer.mediaType,
    manifest: image.descriptor.digest,
    annotations: layer.annotations ?? {},
  };
}
