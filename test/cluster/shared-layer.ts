import { randomBytes } from 'node:crypto';
import { writeZstdChunked } from '#shared/convert/zstd-chunked-writer.ts';
import type { WrittenLayer } from '#shared/convert/layer-writer.ts';
import { fakeMember, fakeTar } from '#shared/layer/fake-layer.ts';

/** A layer's blob with what a manifest says of it. */
export interface StoredLayer extends Pick<WrittenLayer, 'digest' | 'sizeBytes' | 'annotations'> {
  readonly blob: Uint8Array;
  readonly mediaType: string;
}

export interface SharedLayer extends WrittenLayer, StoredLayer {
  readonly blob: Buffer;
  readonly files: number;
}

/** A lazily readable layer of files that nothing compresses, so that its blob is as large as its content. */
export async function sharedLayer(files: number, fileBytes: number, signal: AbortSignal): Promise<SharedLayer> {
  const members = Array.from({ length: files }, (_, i) => fakeMember(`f${i}`, 'file', randomBytes(fileBytes)));
  const tar = fakeTar(members);
  const parts: Uint8Array[] = [];
  const sink = async (bytes: Uint8Array): Promise<void> => {
    parts.push(Uint8Array.from(bytes));
  };
  const written = await writeZstdChunked(chunks(tar), { level: 1 }, sink, signal);
  const mediaType = 'application/vnd.oci.image.layer.v1.tar+zstd';
  return { ...written, blob: Buffer.concat(parts), mediaType, files };
}

async function* chunks(bytes: Buffer): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += 1 << 20) yield bytes.subarray(at, at + (1 << 20));
}
