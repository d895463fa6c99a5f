import type { Digest } from '#shared/digest/digest.ts';
import { Counter, type Registry } from '#shared/telemetry/metrics.ts';
import { isContested, requireOwnTar } from './chain-check.ts';
import { buildCover } from './cover.ts';
import { NotLazyError, type LayerRequest, type ProvidedLayer } from './layer-provider.ts';
import { remoteLabels, remoteRequest, TARGET_LABEL, type RemoteRequest } from './remote-labels.ts';
import type { SnapshotCleanup, SnapshotCleanupDeps } from './snapshot-cleanup.ts';
import { SnapshotError } from './snapshot-error.ts';
import type { SnapshotRoots } from './snapshot-roots.ts';
import type { StoredSnapshot } from './snapshot-store.ts';

export interface RemoteSnapshotsDeps extends SnapshotCleanupDeps {
  readonly roots: SnapshotRoots;
  readonly cleanup: SnapshotCleanup;
  readonly metrics: Registry;
}

type Labels = Readonly<Record<string, string>>;

/** Snapshots that stand for a layer which the provider mounts: they are committed from the first. */
export class RemoteSnapshots {
  readonly #deps: RemoteSnapshotsDeps;
  readonly #notLazy: Counter<'code'>;
  readonly #contested: Counter<'outcome'>;
  /** Those being made, by target and parent: their layers are provided and committed once. */
  readonly #providing = new Map<string, { readonly layer: Digest; readonly committed: Promise<void> }>();
  readonly #closed = new AbortController();

  constructor(deps: RemoteSnapshotsDeps) {
    this.#deps = deps;
    this.#notLazy = new Counter({
      name: 'kindling_layers_not_lazy_total',
      help: 'Layers that containerd had to pull whole, by reason.',
      labelNames: ['code'],
      registers: [deps.metrics],
    });
    this.#contested = new Counter({
      name: 'kindling_snapshots_contested_total',
      help: 'Snapshots asked for that another image had made of a blob whose tar nobody has checked: replaced, or refused.',
      labelNames: ['outcome'],
      registers: [deps.metrics],
    });
  }

  /**
   * Provides layers side by side, ahead of the Prepares that need them one after another, and lets go of those that no
   * snapshot stands on when `work` has ended. Each promise tells why its layer is not lazy; undefined = it is.
   */
  async withLayers<T>(
    requests: readonly LayerRequest[],
    signal: AbortSignal,
    work: (outcomes: readonly Promise<NotLazyError | undefined>[]) => Promise<T>,
  ): Promise<T> {
    for (const { layer } of requests) this.#deps.cleanup.hold(layer);
    const outcomes = requests.map(async (request) => {
      try {
        await this.#deps.layers.provide(request, signal);
        return undefined;
      } catch (error) {
        return asNotLazy(error);
      }
    });
    try {
      return await work(outcomes);
    } finally {
      for (const [i, outcome] of outcomes.entries()) {
        const layer = requests[i]?.layer;
        if (layer === undefined) continue;
        if ((await outcome) === undefined) this.#deps.cleanup.unneeded(layer);
        this.#deps.cleanup.letGo(layer);
      }
      this.#deps.cleanup.soon();
    }
  }

  /**
   * Sees to it that the snapshot that stands for a chain ID, if there is one, may stand for this layer too (see `isContested`): else it is
   * replaced for all that begins from now on.
   *
   * @throws SnapshotError `failed-precondition` where nothing sound can take its place
   */
  async settle(target: string, parent: string, request: LayerRequest, signal: AbortSignal): Promise<void> {
    const { store, layers } = this.#deps;
    const there = store.findTarget(TARGET_LABEL, target, parent);
    if (there?.layer === undefined) return;
    // Every pull of an image comes by here: by now its layers may have been indexed.
    const origin = remoteRequest(there.labels)?.layer;
    if (origin !== undefined && layers.tarOf(there.layer) === undefined) await layers.learnTar(origin, signal);
    if (!this.#isContested(there, request)) return;
    await this.provide({ target, layer: request }, parent, remoteLabels(target, request), signal);
  }

  /** True when the snapshot that containerd wants is committed; false when it must pull the layer itself. */
  async provide(remote: RemoteRequest, parent: string, labels: Labels, signal: AbortSignal): Promise<boolean> {
    for (;;) {
      const there = this.#deps.store.findTarget(TARGET_LABEL, remote.target, parent);
      if (there !== undefined && !this.#isContested(there, remote.layer)) return true;
      const running = this.#providing.get(`${parent}\0${remote.target}`);
      // Two images may want different layers there at the same time: what the one gets need not do for the other.
      if (running !== undefined && running.layer !== remote.layer.layer) {
        await untilAborted(Promise.allSettled([running.committed]), signal);
        continue;
      }
      try {
        await untilAborted(running?.committed ?? this.#begin(remote, parent, labels, there), signal);
        return true;
      } catch (cause) {
        if (cause instanceof SnapshotError || signal.aborted || this.#closed.signal.aborted) throw cause;
        const error = asNotLazy(cause);
        if (there !== undefined) throw this.#refusal(remote, there, error);
        this.#noteNotLazy(remote.layer, error);
        return false;
      }
    }
  }

  /** Not for the caller alone: others may wait for the same, and a layer that is nearly there is worth finishing. */
  #begin(remote: RemoteRequest, parent: string, labels: Labels, there: StoredSnapshot | undefined): Promise<void> {
    // Before the layer is asked for: a parent that is missing is the caller's error, whatever the layer.
    if (parent !== '') this.#deps.store.requireCommitted(parent);
    const { layer } = remote.layer;
    const flight = `${parent}\0${remote.target}`;
    const committed = this.#commitRemote(remote, parent, labels, there, this.#closed.signal).finally(() => {
      this.#providing.delete(flight);
      this.#deps.cleanup.letGo(layer);
    });
    committed.catch(() => undefined);
    this.#deps.cleanup.hold(layer);
    this.#providing.set(flight, { layer, committed });
    return committed;
  }

  #noteNotLazy({ layer, imageReference }: LayerRequest, error: NotLazyError): void {
    this.#notLazy.inc({ code: error.code });
    this.#deps.store.recordNotLazy({ layer, imageReference, code: error.code, reason: error.message });
    this.#deps.logger.warn(
      { layer, image: imageReference, code: error.code, reason: error.message, err: error.cause },
      'layer is not lazy: containerd pulls it whole',
    );
  }

  /** Ends and waits for those being made. */
  async close(): Promise<void> {
    this.#closed.abort();
    await Promise.allSettled(Array.from(this.#providing.values(), ({ committed }) => committed));
  }

  #isContested(there: StoredSnapshot, request: LayerRequest): boolean {
    const { layers, store } = this.#deps;
    return isContested(there, store.find(there.parent), request, (layer) => layers.tarOf(layer));
  }

  /** containerd cannot unpack the layer beside the snapshot that is there: the pull has to fail. */
  #refusal(remote: RemoteRequest, there: StoredSnapshot, cause: NotLazyError): SnapshotError {
    const { layer, imageReference } = remote.layer;
    const origin = remoteRequest(there.labels)?.layer.imageReference ?? 'another image';
    this.#contested.inc({ outcome: 'refused' });
    const error = new SnapshotError(
      'failed-precondition',
      `Refused layer ${layer} of ${imageReference}: snapshot ${there.name} was made of layer ${there.layer} of ${origin}, whose tar was not checked then, and cannot be replaced: ${cause.message}. Remove ${origin}, then pull again`,
      { cause },
    );
    this.#deps.logger.error(
      { layer, image: imageReference, snapshot: there.name, madeOf: there.layer, origin },
      error.message,
    );
    return error;
  }

  /** `there`: a contested snapshot whose place the new one takes. */
  async #commitRemote(
    remote: RemoteRequest,
    parent: string,
    labels: Labels,
    there: StoredSnapshot | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const { layer } = remote.layer;
    const provided = await this.#deps.layers.provide(remote.layer, signal);
    const below = parent === '' ? undefined : this.#deps.store.requireCommitted(parent);
    requireOwnTar(remote, below, provided.diffId);
    if (there !== undefined && provided.diffId === undefined) {
      throw new NotLazyError('refused', 'nobody has checked the tar of this layer either');
    }
    const owner = provided.rootOwner ?? below?.owner ?? { uid: 0, gid: 0 };
    const id = this.#deps.store.reserveId();
    using spared = this.#deps.cleanup.spare(id);
    void spared;
    const hasCover = await this.#cover(id, provided, remote, parent, signal);
    const created = { id, kind: 'committed', parent, labels, layer, owner, hasCover } as const;
    if (there !== undefined) {
      this.#deps.store.replace(there, TARGET_LABEL, { ...created, name: there.name });
      this.#contested.inc({ outcome: 'replaced' });
      this.#deps.logger.error(
        { snapshot: there.name, madeOf: there.layer, layer, image: remote.layer.imageReference },
        'a snapshot was made of a layer whose tar nobody has checked; it stands on one that was checked from now on',
      );
      return;
    }
    // Another parent under the same chain ID (a namespace that unpacked it the normal way): containerd finds ours by label.
    const isTaken = this.#deps.store.find(remote.target) !== undefined;
    const name = isTaken ? `${remote.target}@${parent}` : remote.target;
    this.#deps.store.create({ ...created, name });
    this.#deps.store.forgetNotLazy(layer);
  }

  /** Builds the layer's cover where it needs one. @throws NotLazyError when the layer cannot lie on what is below it. */
  async #cover(
    id: number,
    provided: ProvidedLayer,
    remote: RemoteRequest,
    parent: string,
    signal: AbortSignal,
  ): Promise<boolean> {
    const implied = provided.impliedDirectories ?? [];
    if (parent === '' || implied.length === 0) return false;
    const below = this.#deps.store.requireCommitted(parent);
    const chain = [below, ...this.#deps.store.ancestors(below)];
    const lowers = await this.#deps.roots.of(chain, signal);
    const cover = await this.#deps.folders.createCover(id, signal);
    const result = await buildCover(
      { cover, layer: provided.path, lowers, implied: implied.map((path) => path.toString('latin1')) },
      signal,
    );
    switch (result.kind) {
      case 'built':
        if (!result.used) await this.#deps.folders.remove(id, signal);
        return result.used;
      case 'conflict':
        throw new NotLazyError(
          'unsupported',
          `Layer ${remote.layer.layer} writes below ${JSON.stringify(result.path)}, which is no directory in the layers below`,
        );
      case 'failed':
        throw new NotLazyError(
          'unsupported',
          `Cannot build a cover for layer ${remote.layer.layer}: ${result.message}`,
        );
    }
  }
}

/** A fault of ours must not keep a container from starting: containerd can always pull the layer whole. */
function asNotLazy(cause: unknown): NotLazyError {
  if (cause instanceof NotLazyError) return cause;
  return new NotLazyError('unsupported', `Cannot provide the layer: ${String(cause)}`, { cause });
}

/** The result of `work`, or a rejection as soon as the signal aborts; the work goes on. */
function untilAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(new SnapshotError('cancelled', 'The caller has gone'));
    if (signal.aborted) return onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
