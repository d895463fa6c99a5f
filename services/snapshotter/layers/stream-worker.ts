import { closeSync, openSync, readSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { workerData } from 'node:worker_threads';
import { sha256 } from '#shared/digest/digest.ts';
import { StreamIndexer } from '#shared/formats/stream/stream-indexer.ts';
import { encodeLayerIndex } from '#shared/layer/index-codec.ts';
import { layOut } from './built-layer.ts';
import { ImageWriter, writeFully } from './image-writer.ts';
import { LAYER_FILES } from './layer-folder.ts';
import { Residency } from './residency.ts';
import { serveBlob, type BlobReader } from './serve-blob.ts';
import type { StreamJob } from './stream-job.ts';
import type { BuiltLayer } from './worker-job.ts';

/** Payload gathered before it is written. */
const WRITE_BYTES = 1024 * 1024;

/**
 * Makes one layer from its whole blob, then ends. The payload goes to a file as it passes, since where it lies in the image is
 * known only when every entry is; nothing is read from it before the blob's digest was right.
 */
class StreamedLayer implements BlobReader<BuiltLayer> {
  readonly #folder: string;
  readonly #spool: string;
  readonly #fd: number;
  readonly #keepIndex: boolean;
  readonly #indexer: StreamIndexer;
  #buffer = Buffer.allocUnsafeSlow(WRITE_BYTES);
  #filled = 0;
  #written = 0;

  constructor({ folder, layer, blobSize, keepIndex }: StreamJob) {
    this.#folder = folder;
    this.#keepIndex = keepIndex;
    this.#spool = join(folder, 'spool');
    this.#fd = openSync(this.#spool, 'wx+', 0o600);
    this.#indexer = new StreamIndexer({ layer, blobSize, payload: { payload: (bytes) => this.#keep(bytes) } });
  }

  async push(bytes: Uint8Array): Promise<void> {
    await this.#indexer.push(bytes);
  }

  async finish(): Promise<BuiltLayer> {
    const index = await this.#indexer.finish();
    this.#flush();
    const { layer, map } = layOut(index, this.#folder);
    const writer = new ImageWriter();
    const residency = new Residency(map.spanCount);
    const fd = openSync(join(this.#folder, LAYER_FILES.image), 'r+');
    try {
      let from = 0;
      for (let span = 0; span < map.spanCount; span++) {
        const payload = this.#read(from, map.payloadLength(span));
        writer.write(fd, map, span, payload);
        from += payload.length;
        residency.add(span);
      }
    } finally {
      closeSync(fd);
    }
    writeFileSync(join(this.#folder, LAYER_FILES.residency), residency.toBytes(), { mode: 0o600 });
    if (!this.#keepIndex) return layer;
    const encoded = encodeLayerIndex(index);
    writeFileSync(join(this.#folder, LAYER_FILES.index), encoded, { mode: 0o600 });
    return { ...layer, indexDigest: sha256(encoded) };
  }

  async close(): Promise<void> {
    await this.#indexer[Symbol.asyncDispose]();
    closeSync(this.#fd);
    unlinkSync(this.#spool);
  }

  #keep(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length) {
      const part = bytes.subarray(at, at + this.#buffer.length - this.#filled);
      this.#buffer.set(part, this.#filled);
      this.#filled += part.length;
      at += part.length;
      if (this.#filled === this.#buffer.length) this.#flush();
    }
  }

  #flush(): void {
    writeFully(this.#fd, this.#buffer, this.#filled, this.#written);
    this.#written += this.#filled;
    this.#filled = 0;
  }

  #read(position: number, length: number): Buffer {
    if (length > this.#buffer.length) this.#buffer = Buffer.allocUnsafeSlow(length);
    for (let done = 0; done < length; ) {
      const bytes = readSync(this.#fd, this.#buffer, done, length - done, position + done);
      if (bytes === 0) throw new Error(`The payload in ${this.#spool} was cut short`);
      done += bytes;
    }
    return this.#buffer.subarray(0, length);
  }
}

const job = workerData as StreamJob;
await serveBlob(job.port, () => new StreamedLayer(job));
