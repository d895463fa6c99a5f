import { constants, zstdCompress } from 'node:zlib';
import type { Digest } from '#shared/digest/digest.ts';
import { releaseBytes } from '#shared/formats/release-bytes.ts';

const MiB = 1024 * 1024;

export interface PackedLimits {
  /** Of packed spans that are kept for the next who asks. */
  readonly bytes: number;
  /** Nothing is kept when nobody has asked for so long. */
  readonly idleMs: number;
}

/** In a burst every node soon asks for what came a moment ago; 32 MiB are more than what is under way at a time. */
export const PACKED_LIMITS: PackedLimits = { bytes: 32 * MiB, idleMs: 10_000 };

/** A tenth less is not worth unpacking it. */
const WORTH = 0.9;
/** Shorter payloads go as they are. */
const LEAST_BYTES = 4096;
const LEVEL = 1;
const SAMPLE_BYTES = 32 * 1024;
/** A sample that does not become smaller than this is of bytes that nothing makes smaller. */
const HOPELESS = 0.98;

/**
 * Payloads as they travel between nodes: packed, a third to a half of what they are, so that links are not what a burst waits
 * for. A node hands on what it was sent, once that has proved right, so that a span is packed about once in a cluster.
 */
export class PackedSpans implements Disposable {
  readonly #limits: PackedLimits;
  /** In the order of their last use. An empty one is of a span that packing does not make smaller. */
  readonly #kept = new Map<string, Uint8Array>();
  readonly #packing = new Map<string, Promise<Uint8Array | undefined>>();
  #bytes = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(limits: PackedLimits = PACKED_LIMITS) {
    this.#limits = limits;
  }

  /** Of what is kept. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Keeps a span that came packed; its payload has been verified. The bytes are ours from now on. */
  keep(layer: Digest, span: number, bytes: Uint8Array): void {
    const key = keyOf(layer, span);
    this.#forget(key);
    if (bytes.length > this.#limits.bytes) return;
    this.#kept.set(key, bytes);
    this.#bytes += bytes.length;
    for (const oldest of this.#kept.keys()) {
      if (this.#bytes <= this.#limits.bytes) break;
      this.#forget(oldest);
    }
    this.#emptyLater();
  }

  /**
   * The packed span, whose bytes nobody may change; undefined = send its payload. `read`, of the payload, is
   * called where it is to be packed; its bytes are ours then.
   */
  async get(layer: Digest, span: number, read: () => Promise<Uint8Array | undefined>): Promise<Uint8Array | undefined> {
    const key = keyOf(layer, span);
    const kept = this.#kept.get(key);
    if (kept !== undefined) {
      this.#kept.delete(key);
      this.#kept.set(key, kept);
      this.#emptyLater();
      return kept.length === 0 ? undefined : kept;
    }
    let packing = this.#packing.get(key);
    if (packing === undefined) {
      packing = read().then(async (payload) => (payload === undefined ? undefined : await pack(payload)));
      packing = packing
        .then((bytes) => {
          if (bytes !== undefined) this.keep(layer, span, bytes);
          return bytes?.length === 0 ? undefined : bytes;
        })
        .finally(() => this.#packing.delete(key));
      this.#packing.set(key, packing);
    }
    return await packing;
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#kept.clear();
    this.#bytes = 0;
  }

  #forget(key: string): void {
    this.#bytes -= this.#kept.get(key)?.length ?? 0;
    this.#kept.delete(key);
  }

  #emptyLater(): void {
    if (this.#timer !== undefined) {
      this.#timer.refresh();
      return;
    }
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this[Symbol.dispose]();
    }, this.#limits.idleMs).unref();
  }
}

function keyOf(layer: Digest, span: number): string {
  return `${span} ${layer}`;
}

/** Empty = not worth it. */
async function pack(payload: Uint8Array): Promise<Uint8Array> {
  if (payload.length < LEAST_BYTES) return new Uint8Array(0);
  // What is compressed already shows that in a part of it.
  const middle = payload.length >> 1;
  const sample = payload.subarray(middle, middle + SAMPLE_BYTES);
  const large = payload.length > 4 * SAMPLE_BYTES;
  const hopeless = large && (await compress(sample)).length > sample.length * HOPELESS;
  const packed = hopeless ? payload : await compress(payload);
  const worth = packed.length < payload.length * WORTH;
  // Of a size of its own: the buffer that zlib wrote into is as large as the payload.
  const kept = Uint8Array.from(worth ? packed : []);
  releaseBytes(packed);
  releaseBytes(payload);
  return kept;
}

function compress(bytes: Uint8Array): Promise<Uint8Array> {
  const options = {
    // In one go: each chunk of output would be a round through the thread pool.
    chunkSize: bytes.length + LEAST_BYTES,
    params: { [constants.ZSTD_c_compressionLevel]: LEVEL },
    pledgedSrcSize: bytes.length,
  };
  return new Promise((resolve, reject) => {
    zstdCompress(bytes, options, (error, packed) => {
      if (error === null) resolve(packed);
      else reject(error);
    });
  });
}
