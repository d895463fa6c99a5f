import { readSync, writeSync } from 'node:fs';
import type { DecodableSpanMap } from '#shared/layer/span-map-file.ts';

/** Files of a span lie 4 KiB-aligned, so the gaps between them are smaller than that; a larger one is a hole to keep. */
const MAX_GAP = 4096;
/** Bytes written with one call. */
const GROUP_BYTES = 2 * 1024 * 1024;

/** Writes payloads of spans into layer images; one per thread, since it keeps its buffer. */
export class ImageWriter {
  #buffer = Buffer.alloc(256 * 1024);

  /** Neighbouring files go out in one write: a span of Python modules has a hundred of them. */
  write(fd: number, map: DecodableSpanMap, span: number, payload: Uint8Array): void {
    let start = 0;
    let length = 0;
    let at = 0;
    for (const extent of map.extents(span)) {
      const gap = extent.imageOffset - (start + length);
      if (length > 0 && (gap < 0 || gap >= MAX_GAP || length + gap + extent.length > GROUP_BYTES)) {
        writeFully(fd, this.#buffer, length, start);
        length = 0;
      }
      const part = payload.subarray(at, at + extent.length);
      at += extent.length;
      if (length === 0 && extent.length >= GROUP_BYTES / 2) {
        writeFully(fd, part, part.length, extent.imageOffset);
        continue;
      }
      if (length === 0) start = extent.imageOffset;
      else {
        this.#reserve(length + gap);
        this.#buffer.fill(0, length, length + gap);
        length += gap;
      }
      this.#reserve(length + part.length);
      this.#buffer.set(part, length);
      length += part.length;
    }
    if (length > 0) writeFully(fd, this.#buffer, length, start);
  }

  /** A span's payload as it is in the image. */
  read(fd: number, map: DecodableSpanMap, span: number): Uint8Array {
    const payload = Buffer.allocUnsafe(map.payloadLength(span));
    let at = 0;
    for (const extent of map.extents(span)) {
      for (let done = 0; done < extent.length; ) {
        const bytes = readSync(fd, payload, at, extent.length - done, extent.imageOffset + done);
        if (bytes === 0) return payload.subarray(0, at);
        done += bytes;
        at += bytes;
      }
    }
    return payload;
  }

  #reserve(length: number): void {
    if (length <= this.#buffer.length) return;
    const larger = Buffer.alloc(Math.min(GROUP_BYTES + MAX_GAP, Math.max(length, this.#buffer.length * 2)));
    this.#buffer.copy(larger);
    this.#buffer = larger;
  }
}

export function writeFully(fd: number, bytes: Uint8Array, length: number, position: number): void {
  for (let done = 0; done < length; ) done += writeSync(fd, bytes, done, length - done, position + done);
}
