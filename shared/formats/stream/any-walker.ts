import { GzipWalker } from '#shared/formats/gzip/gzip-walker.ts';
import type { InflaterKind } from '#shared/formats/gzip/block-inflater.ts';
import { ZstdWalker } from '#shared/formats/zstd/zstd-walker.ts';
import { LayerError } from '#shared/layer/layer-index.ts';
import type { StreamWalker, WalkSink } from './stream-walker.ts';
import { TarWalker } from './tar-walker.ts';

export type StreamFormat = 'gzip' | 'zstd' | 'tar';

const ZSTD_MAGIC = 0xfd2fb528;
const SKIPPABLE_MAGIC = 0x184d2a50;
const MAGIC_BYTES = 4;

/** What a blob's first four bytes say; media types are not to be trusted. */
export function formatOf(head: Uint8Array): StreamFormat {
  const [a = 0, b = 0, c = 0, d = 0] = head;
  if (a === 0x1f && b === 0x8b) return 'gzip';
  const magic = (a | (b << 8) | (c << 16) | (d << 24)) >>> 0;
  return magic === ZSTD_MAGIC || (magic & 0xfffffff0) >>> 0 === SKIPPABLE_MAGIC ? 'zstd' : 'tar';
}

/** A walker that finds out by itself how the blob is compressed. */
export class AnyWalker implements StreamWalker {
  readonly #sink: WalkSink;
  readonly #blobSize: number;
  readonly #inflater: InflaterKind | undefined;
  #head: Buffer = Buffer.alloc(0);
  #walker: StreamWalker | undefined;
  #format: StreamFormat | undefined;

  constructor(sink: WalkSink, blobSize: number, inflater?: InflaterKind) {
    this.#sink = sink;
    this.#blobSize = blobSize;
    this.#inflater = inflater;
  }

  /** Known after four bytes. */
  get format(): StreamFormat | undefined {
    return this.#format;
  }

  push(bytes: Uint8Array): void {
    if (this.#walker !== undefined) {
      this.#walker.push(bytes);
      return;
    }
    this.#head = Buffer.concat([this.#head, bytes]);
    if (this.#head.length >= MAGIC_BYTES) this.#open();
  }

  end(): void {
    if (this.#walker === undefined) throw new LayerError('malformed', `the blob has only ${this.#head.length} bytes`);
    this.#walker.end();
  }

  #open(): void {
    this.#format = formatOf(this.#head);
    this.#walker =
      this.#format === 'gzip'
        ? new GzipWalker(this.#sink, this.#blobSize, this.#inflater)
        : this.#format === 'zstd'
          ? new ZstdWalker(this.#sink)
          : new TarWalker(this.#sink);
    this.#walker.push(this.#head);
    this.#head = Buffer.alloc(0);
  }

  [Symbol.dispose](): void {
    this.#walker?.[Symbol.dispose]();
  }
}
