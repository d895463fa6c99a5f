import type { Digest } from '#shared/digest/digest.ts';
import { gzipHeaderLength } from '#shared/formats/gzip/gzip-header.ts';
import {
  type IndexSpan,
  LAYER_LIMITS,
  type LayerEntry,
  LayerError,
  type LayerIndex,
} from '#shared/layer/layer-index.ts';
import { packCheckpoint } from '#shared/layer/packed-checkpoint.ts';
import { parseTarZinfo } from './tar-zinfo.ts';
import { parseZinfo, type Zinfo, type ZinfoPoint } from './zinfo.ts';
import { parseZtoc, type Ztoc } from './ztoc.ts';

export interface ZtocSource {
  /** The zTOC, already checked against its digest. */
  readonly ztoc: Uint8Array;
  /** The first bytes of the blob, `GZIP_HEAD_BYTES` of them where it has so many. */
  readonly head: Uint8Array;
  readonly layer: Digest;
  readonly blobSize: number;
}

/** More than the header of a gzip blob takes, unless its producer put a comment into it. */
export const GZIP_HEAD_BYTES = 512;

/**
 * The index of a gzip or uncompressed layer from a SOCI zTOC, without a byte of its files. Its format is `soci`: a zTOC has digests of spans of the blob
 * only, and none of the windows that decoding begins with. So its spans can be verified where they come from the blob, and nowhere else;
 * and it is to be believed as far as whoever made it.
 *
 * @throws LayerError; `unsupported` also where a span is larger than ours may be
 */
export function indexFromZtoc(source: ZtocSource): LayerIndex {
  const { layer, blobSize } = source;
  try {
    const ztoc = parseZtoc(source.ztoc);
    if (ztoc.blobSize !== blobSize) {
      throw new LayerError('malformed', `it is of a blob of ${ztoc.blobSize} bytes, not ${blobSize}`);
    }
    const spans = spansOf(ztoc, pointsOf(ztoc, source.head));
    return { layer, blobSize, diffId: undefined, format: 'soci', entries: ztoc.entries, spans, prioritySpans: 0 };
  } catch (error) {
    if (!(error instanceof LayerError)) throw error;
    throw new LayerError(error.code, `Refused the SOCI index of layer ${layer}: ${error.message}`, { cause: error });
  }
}

function pointsOf({ isCompressed, checkpoints, blobSize }: Ztoc, head: Uint8Array): readonly ZinfoPoint[] {
  if (!isCompressed) return parseTarZinfo(checkpoints, blobSize);
  const zinfo = parseZinfo(checkpoints);
  checkFront(zinfo, head);
  return zinfo.points;
}

/** Version 1 does not say where the deflate stream begins; where it does, it is checked. */
function checkFront({ version, points }: Zinfo, head: Uint8Array): void {
  const length = gzipHeaderLength(head);
  if (points[0]?.blobOffset === length) return;
  if (version === 1 && typeof length === 'number') {
    throw new LayerError('unsupported', `it takes a gzip header of 10 bytes for granted, the blob's has ${length}`);
  }
  throw new LayerError('malformed', `its first span begins at ${points[0]?.blobOffset}, the deflate stream does not`);
}

function spansOf(ztoc: Ztoc, points: readonly ZinfoPoint[]): readonly IndexSpan[] {
  const { blobSize, streamSize, spanDigests } = ztoc;
  if (points.length !== spanDigests.length) {
    throw new LayerError('malformed', `it has ${points.length} checkpoints and ${spanDigests.length} digests`);
  }
  // Spans that hold only what stands behind the tar's end are none of ours.
  const wanted = points.filter(({ streamOffset }) => streamOffset < streamSize);
  const starts = wanted.map(({ streamOffset }) => streamOffset);
  const payloads = payloadLengths(ztoc.entries, starts, streamSize);
  return wanted.map((point, i) => {
    const next = points[i + 1];
    const blobOffset = point.blobOffset - (point.bits === 0 ? 0 : 1);
    const blobLength = (next?.blobOffset ?? blobSize) - blobOffset;
    const streamLength = Math.min(next?.streamOffset ?? streamSize, streamSize) - point.streamOffset;
    if (blobLength <= 0) throw new LayerError('malformed', `its span ${i} begins behind the blob's end`);
    if (streamLength > LAYER_LIMITS.spanBytes) {
      throw new LayerError(
        'unsupported',
        `its span ${i} has ${streamLength} bytes, at most ${LAYER_LIMITS.spanBytes} can be used`,
      );
    }
    const length = payloads[i] ?? 0;
    const digest = spanDigests[i];
    const { window } = point;
    return {
      streamLength,
      segments: [{ blobOffset, blobLength, skip: 0, length: streamLength }],
      pieces: length === 0 || digest === undefined ? [] : [{ length, digest }],
      // Nothing of the window's front is referred to where the stream was shorter than it.
      checkpoint:
        window &&
        packCheckpoint({
          bits: point.bits,
          window: window.subarray(Math.max(0, window.length - point.streamOffset)),
        }),
    };
  });
}

/** How much of each span is content of files. @throws LayerError where files overlap or leave the stream. */
function payloadLengths(entries: readonly LayerEntry[], starts: readonly number[], streamSize: number): number[] {
  const lengths = starts.map(() => 0);
  let span = 0;
  let streamEnd = 0;
  for (const [at, { extents }] of entries.entries()) {
    for (const { streamOffset, length } of extents) {
      const end = streamOffset + length;
      if (streamOffset < streamEnd || end > streamSize) {
        throw new LayerError('malformed', `entry ${at} overlaps the one before it or leaves the tar`);
      }
      streamEnd = end;
      for (let from = streamOffset; from < end; ) {
        while ((starts[span + 1] ?? Number.POSITIVE_INFINITY) <= from) span += 1;
        const to = Math.min(end, starts[span + 1] ?? end);
        lengths[span] = (lengths[span] ?? 0) + to - from;
        from = to;
      }
    }
  }
  return lengths;
}
