import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { DecodeError } from '#shared/formats/sync-decoder.ts';
import { ZstdFrames } from '#shared/formats/zstd/zstd-frames.ts';
import { ConvertError } from './convert-error.ts';

/**
 * The tar inside a layer's blob, decompressed as its first bytes say (media types lie): gzip with any number of
 * members, zstd with any number of frames, or plain.
 *
 * @throws ConvertError `malformed` for what cannot be decompressed; errors of `blob` come through.
 */
export async function* layerTar(blob: AsyncIterable<Buffer>, signal: AbortSignal): AsyncGenerator<Buffer> {
  const source = blob[Symbol.asyncIterator]();
  try {
    let head: Buffer = Buffer.alloc(0);
    while (head.length < 4) {
      const next = await source.next();
      if (next.done === true) break;
      head = Buffer.concat([head, next.value]);
    }
    const rest = withHead(head, source);
    if (head[0] === 0x1f && head[1] === 0x8b) yield* through(rest, 'gzip', signal);
    else if (head.length >= 4 && isZstd(head.readUInt32LE(0))) yield* zstdFrames(rest, signal);
    else yield* rest;
  } finally {
    await source.return?.();
  }
}

function isZstd(magic: number): boolean {
  return magic === 0xfd2fb528 || (magic >= 0x184d2a50 && magic <= 0x184d2a5f);
}

async function* withHead(head: Buffer, source: AsyncIterator<Buffer>): AsyncGenerator<Buffer> {
  if (head.length > 0) yield head;
  for (;;) {
    const next = await source.next();
    if (next.done === true) return;
    yield next.value;
  }
}

/** Pumps `source` through a decoder. An error of the source is the one that is thrown, not the decoder's about its end. */
async function* through(
  source: AsyncIterable<Buffer>,
  format: 'gzip' | 'zstd',
  signal: AbortSignal,
): AsyncGenerator<Buffer> {
  const decoder =
    format === 'gzip' ? createGunzip({ chunkSize: 256 * 1024 }) : createZstdDecompress({ chunkSize: 256 * 1024 });
  const failed: { source?: unknown } = {};
  async function* watched(): AsyncGenerator<Buffer> {
    try {
      for await (const chunk of source) yield chunk;
    } catch (cause) {
      failed.source = cause;
      throw cause;
    }
  }
  const pumping = pipeline(Readable.from(watched(), { objectMode: false }), decoder, { signal });
  // It is awaited below, after the decoder's reader has seen the same error.
  pumping.catch(() => {});
  try {
    for await (const chunk of decoder) yield chunk as Buffer;
    await pumping;
  } catch (cause) {
    if (failed.source !== undefined) throw failed.source;
    signal.throwIfAborted();
    throw new ConvertError('malformed', `Cannot decompress a ${format} layer: ${String(cause)}`, { cause });
  } finally {
    decoder.destroy();
    await pumping.catch(() => {});
  }
}

async function* zstdFrames(source: AsyncIterable<Buffer>, signal: AbortSignal): AsyncGenerator<Buffer> {
  const parts = frameParts(source);
  try {
    for (;;) {
      const first = await parts.next();
      if (first.done === true) return;
      yield* through(untilFrameEnds(first.value, parts), 'zstd', signal);
    }
  } finally {
    await parts.return();
  }
}

async function* untilFrameEnds(
  first: { readonly bytes: Buffer; readonly isLast: boolean },
  parts: AsyncGenerator<{ readonly bytes: Buffer; readonly isLast: boolean }, void>,
): AsyncGenerator<Buffer> {
  yield first.bytes;
  let isLast = first.isLast;
  while (!isLast) {
    const next = await parts.next();
    if (next.done === true) return;
    yield next.value.bytes;
    ({ isLast } = next.value);
  }
}

async function* frameParts(
  source: AsyncIterable<Buffer>,
): AsyncGenerator<{ readonly bytes: Buffer; readonly isLast: boolean }, void> {
  const frames = new ZstdFrames();
  for await (const chunk of source) yield* orMalformed(() => [...frames.push(chunk)]);
  orMalformed(() => frames.end());
}

function orMalformed<T>(run: () => T): T {
  try {
    return run();
  } catch (cause) {
    if (!(cause instanceof DecodeError)) throw cause;
    throw new ConvertError('malformed', `Cannot decompress a zstd layer: ${cause.message}`, { cause });
  }
}
