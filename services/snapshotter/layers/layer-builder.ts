import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Claim, Claims } from '#shared/bus/bus.ts';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { TOC_DIGEST_ANNOTATION, ZSTD_CHUNKED_CHECKSUM_ANNOTATIONS } from '#shared/formats/toc/toc-tail.ts';
import { findExternalToc } from '#shared/indexes/external-toc.ts';
import type { IndexRequest, IndexSource } from '#shared/indexes/index-source.ts';
import type { ZtocSource } from '#shared/indexes/soci-indexes.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';
import { hostPlatform } from '#shared/registry/platform.ts';
import { formatReference, parseReference, type Reference } from '#shared/registry/reference.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { NotLazyError, type LayerRequest } from '../snapshots/layer-provider.ts';
import { IndexNews, type PublishIndex } from './index-news.ts';
import { IndexTurn } from './index-turn.ts';
import type { LayerDirectory } from './layer-directory.ts';
import { LAYER_FILES } from './layer-folder.ts';
import type { LayerRecord } from './layer-record.ts';
import type { BuiltLayer } from './worker-job.ts';
import { WorkerError, type WorkerPool } from './worker-pool.ts';

/** Fills a layer's folder from one pass over its blob, where there is neither index nor TOC. */
export interface StreamBuilder {
  /** @returns the layer, with all its spans in the image. @throws LayerError, RegistryError */
  build(
    source: {
      readonly repository: string;
      readonly layer: Digest;
      readonly sizeBytes: number;
      readonly mediaType: string;
    },
    folder: string,
    signal: AbortSignal,
  ): Promise<BuiltLayer>;
}

/** A layer whose size, type and annotations are known. */
interface ResolvedRequest {
  readonly request: LayerRequest;
  readonly repository: string;
  readonly sizeBytes: number;
  readonly mediaType: string;
  readonly annotations: Readonly<Record<string, string>>;
}

interface Built {
  /** Found out here, by reading the whole blob. */
  readonly news?: IndexNews;
  readonly built: BuiltLayer;
  readonly downloadedBytes: number;
  readonly externalToc?: Digest;
}

export interface BuiltFolder {
  /** Its index, where it was made here, still to be published as well. */
  readonly news: IndexNews | undefined;
  readonly record: LayerRecord;
  /** Still to be published. */
  readonly folder: string;
  /** What the registry was asked for. */
  readonly downloadedBytes: number;
}

/** Annotations that tell that a blob has a TOC, and by their digest which TOC to believe. */
const TOC_ANNOTATIONS = [TOC_DIGEST_ANNOTATION, ...ZSTD_CHUNKED_CHECKSUM_ANNOTATIONS] as const;
const ZSTD_POSITION = [
  'io.github.containers.zstd-chunked.manifest-position',
  'io.containers.zstd-chunked.manifest-position',
] as const;

/** What the first request for a TOC asks: layers of small files have some 0.7 % of TOC; a blob up to the minimum comes whole. */
const MIN_TAIL = 256 * 1024;
const MAX_TAIL = 3 * 1024 * 1024;
const TAIL_SHARE = 0.01;
/** How long a manifest is remembered for the next layer of the same image. */
const MANIFEST_MS = 30_000;
/** Bytes of a compressed TOC. */
const MAX_TOC = 128 * 1024 * 1024;

/** What a layer's bytes are asked from, and what may lie beside it. */
export type BuilderRegistry = Pick<RegistryClient, 'tail' | 'platformManifest' | 'blob'>;

/**
 * Makes a layer's folder: from an index that somebody has built, also where its spans come only one after the other; else from the
 * blob's own TOC with one range request (some more where it lies outside), else from a SOCI index beside the image, else from one pass over the whole blob.
 */
export class LayerBuilder {
  readonly #directory: LayerDirectory;
  readonly #workers: Pick<WorkerPool, 'run'>;
  readonly #registry: BuilderRegistry;
  readonly #indexes: readonly IndexSource[];
  readonly #ztocs: ZtocSource | undefined;
  readonly #streamed: StreamBuilder;
  readonly #publishIndex: PublishIndex | undefined;
  readonly #turn: IndexTurn;
  readonly #logger: Logger;
  readonly #manifests = new Map<string, Promise<readonly Descriptor[]>>();

  constructor(options: {
    readonly directory: LayerDirectory;
    readonly workers: Pick<WorkerPool, 'run'>;
    readonly registry: BuilderRegistry;
    readonly indexes: readonly IndexSource[];
    readonly ztocs?: ZtocSource | undefined;
    readonly streamed: StreamBuilder;
    /** Tells other nodes of an index that was made here; undefined where there are none. */
    readonly publishIndex?: PublishIndex | undefined;
    /** So that of several nodes one reads a blob; undefined where there are none. */
    readonly claims?: Pick<Claims, 'claim'> | undefined;
    readonly logger: Logger;
  }) {
    this.#directory = options.directory;
    this.#workers = options.workers;
    this.#registry = options.registry;
    this.#indexes = options.indexes;
    this.#ztocs = options.ztocs;
    this.#streamed = options.streamed;
    this.#publishIndex = options.publishIndex;
    this.#turn = new IndexTurn(options.claims);
    this.#logger = options.logger;
  }

  /** @throws NotLazyError */
  async build(request: LayerRequest, signal: AbortSignal): Promise<BuiltFolder> {
    const folder = await this.#directory.begin();
    try {
      const resolved = await this.#resolve(request, signal);
      const { built, downloadedBytes, news, externalToc } = await this.#buildIn(folder, resolved, signal);
      const { sizeBytes, mediaType, annotations } = resolved;
      const record: LayerRecord = {
        version: 1,
        ...built,
        externalToc,
        requests: [{ ...request, sizeBytes, mediaType, annotations: { ...annotations } }],
      };
      return { record, folder, downloadedBytes, news };
    } catch (error) {
      await rm(folder, { recursive: true, force: true });
      signal.throwIfAborted();
      throw notLazy(request, error);
    }
  }

  /**
   * The digest of the tar of a layer that was made by its TOC, from an index that somebody else has made by now; undefined where nobody
   * has, or where it says something else than the TOC.
   */
  async tarOf(
    request: LayerRequest,
    made: Pick<LayerRecord, 'metadataDigest' | 'mapDigest'>,
    signal: AbortSignal,
  ): Promise<Digest | undefined> {
    const { layer } = request;
    const { metadataDigest, mapDigest } = made;
    try {
      const index = await this.#findIndex(await this.#resolve(request, signal), signal);
      if (index === undefined) return undefined;
      const job = { kind: 'compare-index', layer, index, metadataDigest, mapDigest } as const;
      const { same, diffId } = await this.#workers.run(job, 'prefetch');
      if (same) return diffId;
      this.#logger.error({ layer }, 'a layer was made by a table of contents that its index contradicts');
    } catch (error) {
      signal.throwIfAborted();
      this.#logger.warn({ layer, err: error }, 'Cannot learn the digest of a layer');
    }
    return undefined;
  }

  async #buildIn(folder: string, resolved: ResolvedRequest, signal: AbortSignal): Promise<Built> {
    const index = await this.#findIndex(resolved, signal);
    if (index !== undefined) {
      const built = await this.#buildFromIndex(folder, resolved, index);
      if (built !== undefined) return built;
    }
    if (TOC_ANNOTATIONS.some((name) => resolved.annotations[name] !== undefined)) {
      const built = await this.#buildFromToc(folder, resolved, signal);
      if (built !== undefined) return built;
    }
    const bySoci = await this.#buildFromZtoc(folder, resolved, signal);
    if (bySoci !== undefined) return bySoci;
    // One that cannot be used is there for good: nothing better is to be waited for.
    if (index !== undefined) return await this.#buildFromBlob(folder, resolved, undefined, signal);
    // What other nodes publish comes to the first place, which costs no registry a request.
    const find = async () => await this.#findIndex(resolved, signal, 1);
    const turn = await this.#turn.wait(resolved.request.layer, resolved.sizeBytes, find, signal);
    if ('claim' in turn) return await this.#buildFromBlob(folder, resolved, turn.claim, signal);
    return (
      (await this.#buildFromIndex(folder, resolved, turn.index)) ??
      (await this.#buildFromBlob(folder, resolved, undefined, signal))
    );
  }

  /** undefined: it cannot be used. */
  async #buildFromIndex(folder: string, resolved: ResolvedRequest, index: Uint8Array): Promise<Built | undefined> {
    const { layer } = resolved.request;
    try {
      const built = await this.#workers.run({ kind: 'build-index', layer, folder, index }, 'prefetch');
      return { built, downloadedBytes: 0 };
    } catch (error) {
      // A bad index of somebody else's must not keep the layer from starting: its blob can be read without.
      this.#logger.warn({ layer, err: error }, 'Cannot use the index that was found');
      await this.#clear(folder);
      return undefined;
    }
  }

  /** `claim`: others wait for the index, until it is disposed of. */
  async #buildFromBlob(
    folder: string,
    resolved: ResolvedRequest,
    claim: Claim | undefined,
    signal: AbortSignal,
  ): Promise<Built> {
    const { request, repository, sizeBytes, mediaType } = resolved;
    const { layer } = request;
    await using held = new AsyncDisposableStack();
    held.use(claim);
    const built = await this.#streamed.build({ repository, layer, sizeBytes, mediaType }, folder, signal);
    if (built.indexDigest === undefined || this.#publishIndex === undefined)
      return { built, downloadedBytes: sizeBytes };
    const index = await readFile(join(folder, LAYER_FILES.index), { signal });
    held.move();
    return { built, downloadedBytes: sizeBytes, news: new IndexNews(this.#publishIndex, layer, index, claim) };
  }

  /** For another attempt in the same folder. */
  async #clear(folder: string): Promise<void> {
    await rm(folder, { recursive: true, force: true });
    await mkdir(folder, { mode: 0o700 });
  }

  /** undefined where there is none that can be used; the layer can be read without. */
  async #buildFromZtoc(folder: string, resolved: ResolvedRequest, signal: AbortSignal): Promise<Built | undefined> {
    const { layer } = resolved.request;
    try {
      const found = await this.#ztocs?.find(indexRequest(resolved), signal);
      if (found === undefined) return undefined;
      const [ztoc, head] = [new Uint8Array(found.ztoc), new Uint8Array(found.head)];
      const downloadedBytes = ztoc.length + head.length;
      const built = await this.#workers.run(
        { kind: 'build-ztoc', layer, folder, blobSize: resolved.sizeBytes, ztoc, head },
        'prefetch',
        [ztoc.buffer],
      );
      return { built, downloadedBytes };
    } catch (error) {
      signal.throwIfAborted();
      this.#logger.warn({ layer, err: error }, 'Cannot use the SOCI index that was found');
      await this.#clear(folder);
      return undefined;
    }
  }

  async #findIndex(resolved: ResolvedRequest, signal: AbortSignal, places = Infinity): Promise<Uint8Array | undefined> {
    const { request } = resolved;
    const wanted = indexRequest(resolved);
    for (const source of this.#indexes.slice(0, places)) {
      try {
        const index = await source.find(wanted, signal);
        if (index !== undefined) return index;
      } catch (error) {
        signal.throwIfAborted();
        this.#logger.warn({ layer: request.layer, err: error }, 'Cannot ask for an index');
      }
    }
    return undefined;
  }

  async #buildFromToc(folder: string, resolved: ResolvedRequest, signal: AbortSignal): Promise<Built | undefined> {
    const { request, repository, sizeBytes, mediaType, annotations } = resolved;
    const { layer } = request;
    let length = tailLength(sizeBytes, annotations);
    let downloadedBytes = 0;
    // Once for the guess, once for what the footer says.
    for (let attempt = 0; attempt < 2; attempt++) {
      const bytes = await this.#registry.tail(repository, { digest: layer, size: sizeBytes }, length, signal);
      const tail = new Uint8Array(bytes);
      downloadedBytes += tail.length;
      const answer = await this.#workers.run(
        { kind: 'build-tail', layer, folder, blobSize: sizeBytes, mediaType, annotations, tail },
        'prefetch',
        [tail.buffer],
      );
      if (answer.kind === 'built') return { built: answer.layer, downloadedBytes };
      if (answer.kind === 'no-toc') return undefined;
      if (answer.kind === 'external') {
        return await this.#buildFromOutside(folder, resolved, answer.dataEnd, downloadedBytes, signal);
      }
      length = sizeBytes - answer.from;
      if (length > MAX_TOC) break;
    }
    throw new NotLazyError('refused', `Cannot use the TOC of ${layer}: its footer asks for more than ${MAX_TOC} bytes`);
  }

  /** undefined where the TOC is not beside the image: an image named by digest alone does not tell where that would be. */
  async #buildFromOutside(
    folder: string,
    resolved: ResolvedRequest,
    dataEnd: number,
    tailBytes: number,
    signal: AbortSignal,
  ): Promise<Built | undefined> {
    const { request, repository, sizeBytes: blobSize, annotations } = resolved;
    const { layer } = request;
    const { tag } = parseReference(request.imageReference);
    const found = await findExternalToc(this.#registry, repository, tag, layer, signal);
    if (found === undefined) return undefined;
    const toc = new Uint8Array(found);
    const downloadedBytes = tailBytes + toc.length;
    const built = await this.#workers.run(
      { kind: 'build-toc', layer, folder, blobSize, annotations, toc, dataEnd },
      'prefetch',
      [toc.buffer],
    );
    return built && { built, downloadedBytes, externalToc: sha256(toc) };
  }

  /** Labels may lack the size and the annotations (CRI passes on only few): then the manifest says them. */
  async #resolve(request: LayerRequest, signal: AbortSignal): Promise<ResolvedRequest> {
    const reference = parseReference(request.imageReference);
    const { repository } = reference;
    const { sizeBytes, mediaType, annotations } = request;
    if (sizeBytes !== undefined && mediaType !== undefined) {
      return { request, repository, sizeBytes, mediaType, annotations };
    }
    const wanted = request.manifest === undefined ? reference : parseReference(`${repository}@${request.manifest}`);
    const layers = await this.#layersOf(wanted, signal);
    const found = layers.find(({ digest }) => digest === request.layer);
    if (found === undefined) {
      throw new NotLazyError(
        'no-index',
        `Cannot provide ${request.layer} lazily: manifest ${formatReference(wanted)} does not name it, so its size is unknown`,
      );
    }
    return {
      request,
      repository,
      sizeBytes: found.size,
      mediaType: found.mediaType,
      annotations: { ...found.annotations, ...annotations },
    };
  }

  /** All layers of an image ask at the same time: one request for them. */
  #layersOf(reference: Reference, signal: AbortSignal): Promise<readonly Descriptor[]> {
    const key = formatReference(reference);
    const known = this.#manifests.get(key);
    if (known !== undefined) return known;
    const asked = this.#registry
      .platformManifest(reference, hostPlatform(), signal)
      .then(({ parsed }) => parsed.layers);
    this.#manifests.set(key, asked);
    const forget = () => this.#manifests.delete(key);
    asked.then(() => setTimeout(forget, MANIFEST_MS).unref(), forget);
    return asked;
  }
}

function indexRequest({ request, repository, sizeBytes, mediaType, annotations }: ResolvedRequest): IndexRequest {
  const { layer, manifest } = request;
  return { layer, sizeBytes, mediaType, repository, annotations, ...(manifest === undefined ? {} : { manifest }) };
}

function tailLength(sizeBytes: number, annotations: Readonly<Record<string, string>>): number {
  for (const name of ZSTD_POSITION) {
    // `offset:compressed length:raw length:type`
    const offset = /^(\d{1,15}):/.exec(annotations[name] ?? '')?.[1];
    if (offset !== undefined && Number(offset) < sizeBytes) {
      // The frame's header stands before the offset.
      const length = sizeBytes - Math.max(0, Number(offset) - 8);
      if (length <= MAX_TOC) return length;
    }
  }
  return Math.min(sizeBytes, Math.max(MIN_TAIL, Math.min(MAX_TAIL, Math.round(sizeBytes * TAIL_SHARE))));
}

function notLazy(request: LayerRequest, error: unknown): NotLazyError {
  if (error instanceof NotLazyError) return error;
  const message = `Cannot provide ${request.layer} of ${request.imageReference} lazily: ${error instanceof Error ? error.message : String(error)}`;
  return new NotLazyError(reasonOf(error), message, { cause: error });
}

function reasonOf(error: unknown): NotLazyError['code'] {
  if (!(error instanceof Error)) return 'unsupported';
  const code = 'code' in error ? error.code : undefined;
  if (code === 'ENOSPC' || code === 'EDQUOT') return 'disk-full';
  if (error.name === 'RegistryError')
    return code === 'too-large' || code === 'digest-mismatch' ? 'refused' : 'unreachable';
  if (code === 'unsupported') return 'unsupported';
  if (error.name === 'LayerError' || error instanceof WorkerError) return 'refused';
  return 'unsupported';
}
