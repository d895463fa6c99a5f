import type { Digest } from '#shared/digest/digest.ts';
import { LayerError, type LayerIndex } from '#shared/layer/layer-index.ts';
import type { PayloadSink } from './stream/stream-digester.ts';
import { StreamIndexer } from './stream/stream-indexer.ts';
import { indexFromToc } from './toc/index-from-toc.ts';
import { TocCheck } from './toc/toc-check.ts';
import {
  TAIL_BYTES,
  TOC_DIGEST_ANNOTATION,
  tocFromOutside,
  tocFromTail,
  ZSTD_CHUNKED_CHECKSUM_ANNOTATIONS,
} from './toc/toc-tail.ts';

/** Where the bytes of one blob come from. Both reject when `signal` aborts. */
export interface BlobSource {
  /** Bytes [start, end). */
  range(start: number, end: number, signal: AbortSignal): Promise<Uint8Array>;
  /** All of them, in order. */
  stream(signal: AbortSignal): AsyncIterable<Uint8Array>;
  /** The TOC of an eStargz blob that has it outside of itself; undefined where there is none. */
  externalToc?(signal: AbortSignal): Promise<Uint8Array | undefined>;
}

/** The part of an OCI descriptor that matters here. */
export interface BlobDescriptor {
  readonly digest: Digest;
  readonly size: number;
  readonly annotations?: Readonly<Record<string, string>> | undefined;
}

export interface BuildIndexOptions {
  /** Digest of the uncompressed tar as the image's config has it; checked where the blob is streamed. */
  readonly diffId?: Digest | undefined;
  /**
   * `use` believes a TOC that the descriptor vouches for, and reads nothing else: the diff ID stays unknown. `check` reads all of the blob
   * as well, and takes the index from its tar where the TOC says something else. `never` takes it from the tar in any case.
   */
  readonly toc?: 'use' | 'check' | 'never';
  /** In what a TOC contradicts its tar, where `check` has found that. */
  readonly onContradiction?: ((difference: string) => void) | undefined;
  /** See StreamIndexer. */
  readonly threads?: 'one' | 'two';
  readonly payload?: PayloadSink | undefined;
  /** Bytes of the blob read so far; not called where the TOC is all that is read. */
  readonly onProgress?: ((blobBytes: number) => void) | undefined;
}

/** Whether a descriptor's annotations say that its blob has a TOC, and vouch for it. */
export function announcesToc(descriptor: BlobDescriptor): boolean {
  const { annotations = {} } = descriptor;
  return [TOC_DIGEST_ANNOTATION, ...ZSTD_CHUNKED_CHECKSUM_ANNOTATIONS].some((name) => annotations[name] !== undefined);
}

/** Whether every span can be had from the blob by itself; not so for large zstd frames, which have no seek points. */
export function isSeekable(index: Pick<LayerIndex, 'spans'>): boolean {
  return index.spans.every(({ segments }) => segments.every(({ blobLength }) => blobLength > 0));
}

/**
 * The index of a layer: from its TOC with one or two range requests where it has one (external ones too), else from one pass over the blob.
 * The same TOC gives the same spans, checked or not: nodes share them.
 *
 * @throws LayerError when the layer must not be used; errors of the source come through.
 */
export async function buildLayerIndex(
  source: BlobSource,
  descriptor: BlobDescriptor,
  options: BuildIndexOptions,
  signal: AbortSignal,
): Promise<LayerIndex> {
  const { toc = 'use' } = options;
  const byToc = toc !== 'never' && announcesToc(descriptor) ? await indexByToc(source, descriptor, signal) : undefined;
  if (byToc !== undefined && toc === 'use') return byToc;
  const check = byToc && new TocCheck(byToc);
  await using indexer = new StreamIndexer({
    layer: descriptor.digest,
    blobSize: descriptor.size,
    diffId: options.diffId,
    payload: options.payload,
    witness: check,
    threads: options.threads ?? 'two',
  });
  let blobBytes = 0;
  for await (const bytes of source.stream(signal)) {
    signal.throwIfAborted();
    await indexer.push(bytes);
    blobBytes += bytes.length;
    options.onProgress?.(blobBytes);
  }
  signal.throwIfAborted();
  const streamed = await indexer.finish();
  const difference = check?.finish();
  if (byToc === undefined) return streamed;
  if (difference === undefined) return { ...byToc, diffId: streamed.diffId };
  options.onContradiction?.(difference);
  return streamed;
}

/**
 * The index of a layer whose descriptor announces a TOC, from that. undefined where there is none that can be used.
 *
 * @throws LayerError when the TOC is not what the descriptor promises; errors of the source come through.
 */
export async function indexByToc(
  source: Pick<BlobSource, 'range' | 'externalToc'>,
  descriptor: BlobDescriptor,
  signal: AbortSignal,
): Promise<LayerIndex | undefined> {
  const { digest: layer, size: blobSize, annotations = {} } = descriptor;
  let from = Math.max(0, blobSize - TAIL_BYTES);
  for (;;) {
    const tail = await source.range(from, blobSize, signal);
    if (tail.length !== blobSize - from) {
      throw new LayerError(
        'malformed',
        `Refused layer ${layer}: ${tail.length} bytes of its end, not ${blobSize - from}`,
      );
    }
    const found = tocFromTail({ tail, blobSize, layer, annotations });
    if (found.kind === 'none') return undefined;
    if (found.kind === 'more') {
      from = found.from;
      continue;
    }
    const outside = found.kind === 'external' ? await source.externalToc?.(signal) : undefined;
    const toc =
      found.kind === 'toc'
        ? found
        : outside && tocFromOutside(outside, found.dataEnd, { blobSize, layer, annotations });
    if (toc === undefined) return undefined;
    try {
      return indexFromToc({ ...toc, layer, blobSize });
    } catch (error) {
      // Legacy stargz has chunks without digests: only the whole blob vouches for them.
      if (error instanceof LayerError && error.code === 'unsupported') return undefined;
      throw error;
    }
  }
}
