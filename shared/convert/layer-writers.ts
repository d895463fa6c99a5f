import { ConvertError } from './convert-error.ts';
import type { ConvertFormat } from './layer-converter.ts';
import type { LayerWriter } from './layer-writer.ts';

/** The writer of a format. */
export function writerOf(format: ConvertFormat): LayerWriter {
  throw new ConvertError('unsupported', `Cannot convert to ${format}: no writer for it`);
}
