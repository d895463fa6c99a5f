import { LAYER_LIMITS } from '#shared/layer/layer-index.ts';

/**
 * The body of an answer with spans: for each span that was asked for, in that order, a header of 8 bytes and the payload.
 *
 *     0  4  span number, big endian
 *     4  4  bytes that follow; bit 31 set = they are packed; 0xffffffff = not available, nothing follows
 *
 * Packed is one zstd frame of the payload, shorter than it. It is sent only to who asks for `PACKED_SPANS`.
 */
const FRAME_HEADER_BYTES = 8;
const NOT_AVAILABLE = 0xffffffff;
const PACKED = 0x80000000;

/** Media types of such an answer: without packed spans, and with. */
export const PLAIN_SPANS = 'application/vnd.kindling.spans.v1';
export const PACKED_SPANS = 'application/vnd.kindling.spans.v2';

/** Of a request that a reader waits for: what the peer is reading of it from the registry is as urgent as what is read there. */
export const DEMAND_HEADER = 'x-kindling-demand';
/** Of any request: how many answers' bytes the asker was getting when it asked. Whoever gets least is served first. */
export const RECEIVING_HEADER = 'x-kindling-receiving';
/** What it says at most. */
export const MAX_RECEIVING = 99;

/** What the header says; one that is missing or wrong counts as the most, so that it brings nobody forward. */
export function parseReceiving(header: string | readonly string[] | undefined): number {
  return typeof header === 'string' && /^\d{1,2}$/.test(header) ? Number(header) : MAX_RECEIVING;
}

export type SpanFrame =
  | { readonly span: number; readonly form: 'payload' | 'packed'; readonly bytes: Buffer }
  /** The peer has not got it. */
  | { readonly span: number; readonly form: 'absent' };

export class FrameError extends Error {
  override readonly name = 'FrameError';
  readonly code: 'too-large' | 'unexpected' | 'cut-short';
  constructor(code: FrameError['code'], message: string) {
    super(message);
    this.code = code;
  }
}

/** `length` undefined = not available. */
export function frameHeader(span: number, length: number | undefined, packed = false): Buffer {
  const header = Buffer.alloc(FRAME_HEADER_BYTES);
  header.writeUInt32BE(span, 0);
  header.writeUInt32BE(length === undefined ? NOT_AVAILABLE : length + (packed ? PACKED : 0), 4);
  return header;
}

/** Takes a body as it comes. `expected` tells the payload's length of a span: one of another length is refused unread. */
export class FrameReader {
  readonly #expected: (span: number) => number | undefined;
  readonly #header = Buffer.alloc(FRAME_HEADER_BYTES);
  #headerBytes = 0;
  #span = 0;
  #form: 'payload' | 'packed' = 'payload';
  #bytes: Buffer | undefined;
  #filled = 0;

  constructor(expected: (span: number) => number | undefined) {
    this.#expected = expected;
  }

  /** Frames that are whole now. @throws FrameError */
  push(chunk: Uint8Array): SpanFrame[] {
    const frames: SpanFrame[] = [];
    let at = 0;
    while (at < chunk.length || this.#isWhole()) {
      if (this.#bytes === undefined) {
        const part = chunk.subarray(at, at + FRAME_HEADER_BYTES - this.#headerBytes);
        this.#header.set(part, this.#headerBytes);
        this.#headerBytes += part.length;
        at += part.length;
        if (this.#headerBytes < FRAME_HEADER_BYTES) return frames;
        this.#headerBytes = 0;
        this.#span = this.#header.readUInt32BE(0);
        const field = this.#header.readUInt32BE(4);
        const expected = this.#expected(this.#span);
        if (expected === undefined) throw new FrameError('unexpected', `Span ${this.#span} was not asked for`);
        if (field === NOT_AVAILABLE) {
          frames.push({ span: this.#span, form: 'absent' });
          continue;
        }
        this.#form = field >= PACKED ? 'packed' : 'payload';
        const length = field % PACKED;
        const right = this.#form === 'packed' ? length < expected : length === expected;
        if (!right || length > LAYER_LIMITS.spanBytes) {
          throw new FrameError('too-large', `Span ${this.#span} has ${expected} bytes, not ${length} (${this.#form})`);
        }
        // Of its own memory, so that it can be handed to a decoder's thread without a copy.
        this.#bytes = Buffer.allocUnsafeSlow(length);
        this.#filled = 0;
      } else {
        const part = chunk.subarray(at, at + this.#bytes.length - this.#filled);
        this.#bytes.set(part, this.#filled);
        this.#filled += part.length;
        at += part.length;
      }
      if (this.#bytes !== undefined && this.#isWhole()) {
        const bytes = this.#bytes;
        this.#bytes = undefined;
        frames.push({ span: this.#span, form: this.#form, bytes });
      }
    }
    return frames;
  }

  /** @throws FrameError when the body ended within a frame. */
  end(): void {
    if (this.#headerBytes > 0 || this.#bytes !== undefined) {
      throw new FrameError('cut-short', 'The answer ended within a span');
    }
  }

  #isWhole(): boolean {
    return this.#bytes !== undefined && this.#filled === this.#bytes.length;
  }
}

const RUN_LIST = /^\d{1,7}(-\d{1,7})?(,\d{1,7}(-\d{1,7})?)*$/;

/** `3-5,9`; undefined = malformed, or more than `limit` spans. */
export function parseSpanRuns(text: string, limit: number): number[] | undefined {
  if (text.length > 2048 || !RUN_LIST.test(text)) return undefined;
  const spans: number[] = [];
  for (const part of text.split(',')) {
    const [first = 0, last = first] = part.split('-').map(Number);
    if (last < first || spans.length + last - first + 1 > limit) return undefined;
    for (let span = first; span <= last; span++) spans.push(span);
  }
  return spans;
}

export function formatSpanRuns(spans: readonly number[]): string {
  const runs: string[] = [];
  for (let i = 0; i < spans.length; ) {
    let end = i;
    while (spans[end + 1] === (spans[end] ?? 0) + 1) end++;
    runs.push(end === i ? `${spans[i]}` : `${spans[i]}-${spans[end]}`);
    i = end + 1;
  }
  return runs.join(',');
}
