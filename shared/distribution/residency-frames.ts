import { SpanSet } from './span-set.ts';

/**
 * The body of a residency stream: what a node holds of a layer, and from then on each change.
 *
 *     0  4  span count, big endian
 *     4  .  the bitmap (SpanSet), ceil(spanCount / 8) bytes
 *     then, for each span that becomes resident or is lost, 4 bytes big endian: bit 31 set = lost, the rest the span;
 *     0x7fffffff = nothing has changed, the node is alive
 */
const LOST = 0x80000000;
const ALIVE = 0x7fffffff;

export type ResidencyChange = { readonly span: number; readonly has: boolean };

export class ResidencyError extends Error {
  override readonly name = 'ResidencyError';
  readonly code = 'malformed';
}

export function residencyHead(spanCount: number, bits: Uint8Array): Buffer {
  const head = Buffer.alloc(4 + Math.ceil(spanCount / 8));
  head.writeUInt32BE(spanCount, 0);
  head.set(bits.subarray(0, head.length - 4), 4);
  return head;
}

export function residencyChanges(changes: readonly ResidencyChange[]): Buffer {
  const bytes = Buffer.alloc(changes.length * 4);
  for (const [i, { span, has }] of changes.entries()) bytes.writeUInt32BE(has ? span : LOST + span, i * 4);
  return bytes;
}

export function residencyBeat(): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(ALIVE, 0);
  return bytes;
}

/** Takes the stream as it comes. @throws ResidencyError from `push` when it is of a layer with another span count. */
export class ResidencyReader {
  readonly #spanCount: number;
  #rest: Buffer = Buffer.alloc(0);
  #begun = false;

  constructor(spanCount: number) {
    this.#spanCount = spanCount;
  }

  push(chunk: Uint8Array): ResidencyChange[] {
    let bytes: Buffer =
      this.#rest.length === 0
        ? Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)
        : Buffer.concat([this.#rest, chunk]);
    const changes: ResidencyChange[] = [];
    if (!this.#begun) {
      const head = 4 + Math.ceil(this.#spanCount / 8);
      if (bytes.length >= 4 && bytes.readUInt32BE(0) !== this.#spanCount) {
        throw new ResidencyError(`The layer has ${this.#spanCount} spans, not ${bytes.readUInt32BE(0)}`);
      }
      if (bytes.length < head) {
        this.#rest = bytes;
        return changes;
      }
      this.#begun = true;
      for (const span of new SpanSet(this.#spanCount, bytes.subarray(4, head)).spans()) {
        if (span < this.#spanCount) changes.push({ span, has: true });
      }
      bytes = bytes.subarray(head);
    }
    let at = 0;
    for (; at + 4 <= bytes.length; at += 4) {
      const value = bytes.readUInt32BE(at);
      if (value === ALIVE) continue;
      const lost = value >= LOST;
      const span = lost ? value - LOST : value;
      if (span >= this.#spanCount) throw new ResidencyError(`The layer has no span ${span}`);
      changes.push({ span, has: !lost });
    }
    this.#rest = Buffer.from(bytes.subarray(at));
    return changes;
  }
}
