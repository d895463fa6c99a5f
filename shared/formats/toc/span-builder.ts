import { SPAN_TARGET_BYTES } from '#shared/formats/span-target.ts';
import {
  type IndexSpan,
  LAYER_LIMITS,
  LayerError,
  type SpanPiece,
  type SpanSegment,
} from '#shared/layer/layer-index.ts';
import { malformed, type TocChunk } from './toc-entry.ts';

/** A gap of the blob that is cheaper to fetch than a further request; a wider one ends a span. */
const MAX_GAP_BYTES = 64 * 1024;

/** More than this much decoded before the wanted bytes of a member is refused: every read would pay for it. */
const MAX_SKIP_BYTES = LAYER_LIMITS.spanBytes;

/**
 * Compressed bytes that can be needed for so many decoded ones. What lies behind them in the member (headers of files without
 * content) is not fetched, and a TOC cannot make a read of one byte fetch a gigabyte.
 */
function compressedBound(decoded: number): number {
  return decoded + Math.ceil(decoded / 4) + 64 * 1024;
}

/** Chunks of one member that are decoded in one go. */
interface Group {
  blobOffset: number;
  blobEnd: number | undefined;
  innerStart: number;
  innerEnd: number;
  streamStart: number;
  pieces: SpanPiece[];
}

/** Collects chunks in blob order into spans. */
export class SpanBuilder {
  readonly #spans: IndexSpan[] = [];
  /** Where the data of the blob ends: the TOC begins. */
  readonly #dataEnd: number;
  #segments: SpanSegment[] = [];
  #pieces: SpanPiece[] = [];
  #spanLength = 0;
  #streamLength = 0;
  #group: Group | undefined;
  #landmarkInGroup = false;
  #prioritySpans = 0;

  constructor(dataEnd: number) {
    this.#dataEnd = dataEnd;
  }

  /** @returns the chunk's offset in the stream. */
  add(chunk: TocChunk): number {
    const { innerOffset, length, blobOffset } = chunk;
    const innerEnd = innerOffset + length;
    if (length > LAYER_LIMITS.spanBytes) {
      throw new LayerError('too-large', `a chunk of ${length} bytes, at most ${LAYER_LIMITS.spanBytes}`);
    }
    if (innerOffset > MAX_SKIP_BYTES) {
      throw new LayerError('too-large', `its innerOffset is ${innerOffset}, at most ${MAX_SKIP_BYTES}`);
    }
    const group = this.#group;
    if (group !== undefined && group.blobOffset === blobOffset) {
      if (innerOffset < group.innerEnd) throw malformed(`its chunk at ${blobOffset} overlaps the one before it`);
      if (innerEnd - group.innerStart <= LAYER_LIMITS.spanBytes) {
        group.innerEnd = innerEnd;
        group.pieces.push({ length, digest: chunk.digest });
        return group.streamStart + innerOffset - group.innerStart;
      }
    }
    this.#commit(blobOffset);
    this.#group = {
      blobOffset,
      blobEnd: chunk.blobEnd,
      innerStart: innerOffset,
      innerEnd,
      streamStart: this.#streamLength,
      pieces: [{ length, digest: chunk.digest }],
    };
    return this.#streamLength;
  }

  /** What was added so far is what the image's producer wants fetched first; `blobOffset` is the landmark's own. */
  landmark(blobOffset: number): void {
    if (this.#group?.blobOffset === blobOffset) {
      this.#landmarkInGroup = true;
      return;
    }
    this.#commit(blobOffset);
    this.#flush();
    this.#prioritySpans = this.#spans.length;
  }

  finish(): { readonly spans: readonly IndexSpan[]; readonly prioritySpans: number } {
    this.#commit(this.#dataEnd);
    this.#flush();
    return { spans: this.#spans, prioritySpans: this.#prioritySpans };
  }

  /** Ends the group; the next one begins at `nextOffset`. */
  #commit(nextOffset: number): void {
    const group = this.#group;
    if (group === undefined) return;
    this.#group = undefined;
    if (nextOffset < group.blobOffset) {
      throw malformed(`its chunk at ${nextOffset} is in the blob before the one at ${group.blobOffset}`);
    }
    // A member too large for one span is cut, and its parts all begin at its start.
    const nextMember = nextOffset === group.blobOffset ? this.#dataEnd : nextOffset;
    const end = Math.min(group.blobEnd ?? nextMember, nextMember, group.blobOffset + compressedBound(group.innerEnd));
    if (end <= group.blobOffset) {
      throw malformed(`its chunk at ${group.blobOffset} is not before the end of the blob's data, ${this.#dataEnd}`);
    }
    const length = group.innerEnd - group.innerStart;
    const last = this.#segments.at(-1);
    const lastEnd = last === undefined ? group.blobOffset : last.blobOffset + last.blobLength;
    if (
      last !== undefined &&
      (this.#spanLength + length > SPAN_TARGET_BYTES ||
        last.blobOffset === group.blobOffset ||
        group.blobOffset - lastEnd > MAX_GAP_BYTES)
    ) {
      this.#flush();
    }
    this.#segments.push({
      blobOffset: group.blobOffset,
      blobLength: end - group.blobOffset,
      skip: group.innerStart,
      length,
    });
    for (const piece of group.pieces) this.#pieces.push(piece);
    this.#spanLength += length;
    this.#streamLength += length;
    if (this.#landmarkInGroup) {
      this.#landmarkInGroup = false;
      this.#flush();
      this.#prioritySpans = this.#spans.length;
    }
  }

  #flush(): void {
    if (this.#segments.length === 0) return;
    this.#spans.push({
      streamLength: this.#spanLength,
      segments: this.#segments,
      pieces: this.#pieces,
      checkpoint: undefined,
    });
    this.#segments = [];
    this.#pieces = [];
    this.#spanLength = 0;
  }
}
