import { hash } from 'node:crypto';
import type { Digest } from '#shared/digest/digest.ts';
import { type Checkpoint, type LayerFormat, LayerError, type SpanSegment } from '#shared/layer/layer-index.ts';
import type { ImageExtent } from '#shared/layer/span-map.ts';
import { decodeDeflateSpan } from './gzip/deflate-span.ts';
import { releaseBytes } from './release-bytes.ts';
import { DecodeError, SyncDecoder } from './sync-decoder.ts';
import { wantedMembers } from './wanted-members.ts';
import { wantedPieces } from './wanted-pieces.ts';

/** What decoding needs to know of a layer's spans; the span map has it. */
export interface SpanCoding {
  readonly layer: Digest;
  readonly format: LayerFormat;
  blobStart(span: number): number;
  blobEnd(span: number): number;
  decodedLength(span: number): number;
  payloadLength(span: number): number;
  extents(span: number): readonly ImageExtent[];
  segments(span: number): readonly SpanSegment[];
  pieces(span: number): readonly { readonly length: number; readonly digest: Uint8Array }[];
  checkpoint(span: number): Checkpoint | undefined;
}

/**
 * As a source delivers them: the span's range of the blob, what that decodes to, its payload, or the payload
 * packed in one zstd frame. Nothing is verified yet.
 */
export interface UndecodedSpan {
  readonly form: 'compressed' | 'decoded' | 'payload' | 'packed';
  readonly bytes: Uint8Array;
}

/** Verified bytes and where they lie in the layer image. */
export interface ImagePart {
  readonly imageOffset: number;
  readonly bytes: Uint8Array;
}

/** What readers wait for of a span. */
export interface EarlyParts {
  /** Ranges of the layer image. */
  readonly wanted: readonly (readonly [imageStart: number, imageEnd: number])[];
  /** Called at most once: all that the span has of these ranges, and perhaps more, each part verified. Valid only during the call. */
  ready(parts: readonly ImagePart[]): void;
}

/** Decoded bytes in front of the wanted ones go through this. */
const SCRATCH_BYTES = 64 * 1024;

/**
 * Decodes and verifies spans; one per thread, since it keeps decoders and buffers from span to span.
 */
export class SpanDecoder implements Disposable {
  readonly #raw = new SyncDecoder('deflate-raw');
  readonly #gzip = new SyncDecoder('gzip');
  readonly #zstd = new SyncDecoder('zstd');
  #scratch: Buffer | undefined;

  /**
   * The span's payload, every piece of it verified. It may share memory with `source.bytes`. `early` gets its parts where that does not
   * take most of the work.
   *
   * @throws LayerError `digest-mismatch` when a piece is not what the index promises, `malformed` when the bytes do not decode
   * or are too few, `unsupported` where bytes that are not the blob's are given for a layer that only its blob verifies (`soci`).
   * Never more memory than the index says the span has.
   */
  decode(map: SpanCoding, span: number, source: UndecodedSpan, early?: EarlyParts): Uint8Array {
    const byBlob = map.format === 'soci';
    if (byBlob) this.#verifyBlob(map, span, source);
    if (early !== undefined) this.#memberParts(map, span, source, early);
    const payload = this.#payload(map, span, source, early);
    const expected = map.payloadLength(span);
    if (payload.length !== expected) {
      throw new LayerError('malformed', `Refused ${place(map, span)}: ${payload.length} bytes, not ${expected}`);
    }
    if (!byBlob) this.#verify(map, span, payload, map.pieces(span));
    return payload;
  }

  /** Of members that can be decoded alone. One that is wrong says so when all is decoded. */
  #memberParts(map: SpanCoding, span: number, { form, bytes }: UndecodedSpan, early: EarlyParts): void {
    const decoder = map.format === 'estargz' ? this.#gzip : map.format === 'zstd-chunked' ? this.#zstd : undefined;
    const blobStart = map.blobStart(span);
    if (decoder === undefined || form !== 'compressed' || bytes.length !== map.blobEnd(span) - blobStart) return;
    const members = wantedMembers(map, span, early.wanted);
    if (members === undefined) return;
    const parts: ImagePart[] = [];
    try {
      for (const { segment, pieces, extents } of members) {
        const decoded = Buffer.allocUnsafe(segment.length);
        this.#member(decoder, bytes, blobStart, segment, decoded);
        this.#verify(map, span, decoded, pieces);
        for (const { decodedOffset, imageOffset, length } of extents) {
          parts.push({ imageOffset, bytes: decoded.subarray(decodedOffset, decodedOffset + length) });
        }
      }
    } catch (error) {
      if (error instanceof DecodeError || error instanceof LayerError) return;
      throw error;
    }
    early.ready(parts);
  }

  /** Of a span that is decoded from its front. */
  #deflateSpan(map: SpanCoding, span: number, bytes: Uint8Array, early: EarlyParts | undefined): Buffer {
    const first = early === undefined || map.format !== 'gzip' ? undefined : wantedPieces(map, span, early.wanted);
    const call = (decoded: Buffer): void => {
      if (first === undefined || early === undefined) return;
      const parts = first.extents.map(({ decodedOffset, imageOffset, length }) => ({
        imageOffset,
        bytes: decoded.subarray(decodedOffset, decodedOffset + length),
      }));
      try {
        this.#verify(map, span, Buffer.concat(parts.map((part) => part.bytes)), first.pieces);
      } catch (error) {
        if (error instanceof LayerError) return;
        throw error;
      }
      early.ready(parts);
    };
    const pause = first === undefined ? undefined : { at: first.decodedEnd, call };
    return decodeDeflateSpan(bytes, map.decodedLength(span), map.checkpoint(span), this.#raw, this.#gzip, pause);
  }

  #payload(map: SpanCoding, span: number, source: UndecodedSpan, early: EarlyParts | undefined): Uint8Array {
    if (source.form === 'payload') return source.bytes;
    if (source.form === 'packed') return this.#unpacked(map, span, source.bytes);
    const decoded = this.#decoded(map, span, source, early);
    const payload = this.#payloadOf(map, span, decoded);
    if (decoded.buffer !== source.bytes.buffer && decoded.buffer !== payload.buffer) releaseBytes(decoded);
    return payload;
  }

  #unpacked(map: SpanCoding, span: number, bytes: Uint8Array): Uint8Array {
    const payload = Buffer.allocUnsafeSlow(map.payloadLength(span));
    try {
      this.#zstd.reset();
      fill(this.#zstd, bytes, 0, bytes.length, payload, 0, payload.length);
    } catch (cause) {
      if (!(cause instanceof DecodeError)) throw cause;
      throw new LayerError('malformed', `Cannot unpack ${place(map, span)}: ${cause.message}`, { cause });
    }
    return payload;
  }

  /** The digest is of the compressed range, so it comes before decoding. */
  #verifyBlob(map: SpanCoding, span: number, { form, bytes }: UndecodedSpan): void {
    if (form !== 'compressed') {
      throw new LayerError('unsupported', `Refused ${place(map, span)}: a SOCI index verifies nothing but the blob`);
    }
    const [piece] = map.pieces(span);
    if (piece === undefined && map.payloadLength(span) === 0) return;
    if (piece !== undefined && hash('sha256', bytes, 'buffer').equals(piece.digest)) return;
    throw new LayerError(
      'digest-mismatch',
      `Refused ${place(map, span)}: its ${bytes.length} compressed bytes have another digest than the SOCI index says`,
    );
  }

  #decoded(map: SpanCoding, span: number, { form, bytes }: UndecodedSpan, early: EarlyParts | undefined): Uint8Array {
    if (form === 'decoded') return bytes;
    const expected = map.blobEnd(span) - map.blobStart(span);
    if (bytes.length !== expected) {
      throw new LayerError(
        'malformed',
        `Refused ${place(map, span)}: ${bytes.length} compressed bytes, not ${expected}`,
      );
    }
    try {
      switch (map.format) {
        case 'tar':
          return bytes;
        case 'soci':
          if (map.checkpoint(span) === undefined) return bytes.subarray(0, map.decodedLength(span));
          return this.#deflateSpan(map, span, bytes, early);
        case 'gzip':
          return this.#deflateSpan(map, span, bytes, early);
        case 'estargz':
          return this.#members(this.#gzip, map, span, bytes);
        case 'zstd':
        case 'zstd-chunked':
          return this.#members(this.#zstd, map, span, bytes);
      }
    } catch (cause) {
      if (!(cause instanceof DecodeError)) throw cause;
      throw new LayerError('malformed', `Cannot decode ${place(map, span)}: ${cause.message}`, { cause });
    }
  }

  /** Segment by segment: gzip members or zstd frames. */
  #members(decoder: SyncDecoder, map: SpanCoding, span: number, bytes: Uint8Array): Uint8Array {
    const decoded = Buffer.allocUnsafe(map.decodedLength(span));
    const blobStart = map.blobStart(span);
    let at = 0;
    for (const segment of map.segments(span)) {
      this.#member(decoder, bytes, blobStart, segment, decoded.subarray(at, at + segment.length));
      at += segment.length;
    }
    if (at !== decoded.length) throw new DecodeError(`segments of ${at} bytes in a span of ${decoded.length}`);
    return decoded;
  }

  #member(decoder: SyncDecoder, bytes: Uint8Array, blobStart: number, segment: SpanSegment, output: Buffer): void {
    const end = segment.blobOffset - blobStart + segment.blobLength;
    let input = segment.blobOffset - blobStart;
    decoder.reset();
    if (segment.skip > 0) {
      this.#scratch ??= Buffer.allocUnsafe(SCRATCH_BYTES);
      for (let left = segment.skip; left > 0; ) {
        const part = Math.min(left, SCRATCH_BYTES);
        input = fill(decoder, bytes, input, end, this.#scratch, 0, part);
        left -= part;
      }
    }
    fill(decoder, bytes, input, end, output, 0, output.length);
  }

  /** What the extents cover of the decoded bytes, in order. */
  #payloadOf(map: SpanCoding, span: number, decoded: Uint8Array): Uint8Array {
    const extents = map.extents(span);
    const [first] = extents;
    const last = extents.at(-1);
    if (first === undefined || last === undefined) return decoded.subarray(0, 0);
    const length = map.payloadLength(span);
    const end = last.decodedOffset + last.length;
    if (end > decoded.length)
      throw new LayerError('malformed', `Refused ${place(map, span)}: an extent passes its end`);
    if (end - first.decodedOffset === length) return decoded.subarray(first.decodedOffset, end);
    const payload = Buffer.allocUnsafe(length);
    let at = 0;
    for (const extent of extents) {
      payload.set(decoded.subarray(extent.decodedOffset, extent.decodedOffset + extent.length), at);
      at += extent.length;
    }
    return at === length ? payload : payload.subarray(0, at);
  }

  #verify(map: SpanCoding, span: number, payload: Uint8Array, pieces: ReturnType<SpanCoding['pieces']>): void {
    let at = 0;
    let index = 0;
    for (const piece of pieces) {
      const digest = hash('sha256', payload.subarray(at, at + piece.length), 'buffer');
      if (!digest.equals(piece.digest)) {
        throw new LayerError(
          'digest-mismatch',
          `Refused ${place(map, span)}: piece ${index} of ${piece.length} bytes has another digest than the index says`,
        );
      }
      at += piece.length;
      index += 1;
    }
    if (at !== payload.length) {
      throw new LayerError('malformed', `Refused ${place(map, span)}: digests cover ${at} of ${payload.length} bytes`);
    }
  }

  [Symbol.dispose](): void {
    this.#raw[Symbol.dispose]();
    this.#gzip[Symbol.dispose]();
    this.#zstd[Symbol.dispose]();
  }
}

function place(map: SpanCoding, span: number): string {
  return `span ${span} of layer ${map.layer}`;
}

/** Fills output[start, end) from the input; returns where the input goes on. A zstd decoder stops after each frame. */
function fill(
  decoder: SyncDecoder,
  input: Uint8Array,
  inputStart: number,
  inputEnd: number,
  output: Buffer,
  start: number,
  end: number,
): number {
  let from = inputStart;
  let to = start;
  while (to < end) {
    decoder.write(input, from, inputEnd, output, to, end);
    if (decoder.consumed === 0 && decoder.produced === 0) {
      throw new DecodeError(`it ends ${end - to} bytes early`);
    }
    from += decoder.consumed;
    to += decoder.produced;
  }
  return from;
}
