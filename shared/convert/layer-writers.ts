import type { ConvertFormat } from './layer-converter.ts';
import type { LayerWriter } from './layer-writer.ts';
import { writeEstargz } from './estargz-writer.ts';
import { writeZstdChunked } from './zstd-chunked-writer.ts';

/** The writer of a format. */
export function writerOf(format: ConvertFormat): LayerWriter {
  return format === 'estargz' ? writeEstargz : writeZstdChunked;
}
