import { LAYER_LIMITS, type LayerEntry, LayerError, type LayerIndex } from './layer-index.ts';
import { MAX_PACKED_BYTES } from './packed-checkpoint.ts';

/** Bytes of the blob that one span may ask for: its decoded bytes stored, with all that a format puts between. */
const MAX_SPAN_BLOB_BYTES = 2 * LAYER_LIMITS.spanBytes;

/**
 * Checks the numbers of an index that came from outside, so that what is built from it stays within its bounds: extents ascend
 * in file and stream and stay inside both, segments stay inside the blob and add up to the span. Returns the stream's length.
 *
 * @throws LayerError `malformed`, `too-large`
 */
export function checkLayerIndex(index: LayerIndex): number {
  if (index.entries.length > LAYER_LIMITS.entries) {
    throw new LayerError('too-large', `Cannot take a layer of ${index.entries.length} entries`);
  }
  if (!isWhole(index.blobSize)) throw malformed(`a blob of ${index.blobSize} bytes`);
  const streamLength = checkSpans(index);
  let streamEnd = 0;
  for (const entry of index.entries) streamEnd = checkEntry(entry, streamEnd);
  if (streamEnd > streamLength) throw malformed(`extents to ${streamEnd} in a stream of ${streamLength} bytes`);
  return streamLength;
}

function checkSpans(index: LayerIndex): number {
  let streamLength = 0;
  if (!(isWhole(index.prioritySpans) && index.prioritySpans <= index.spans.length)) {
    throw malformed(`${index.prioritySpans} priority spans of ${index.spans.length}`);
  }
  for (let i = 0; i < index.spans.length; i++) {
    const span = index.spans[i];
    if (span === undefined) continue;
    if (!isWhole(span.streamLength) || span.streamLength > LAYER_LIMITS.spanBytes) {
      throw new LayerError('too-large', `Cannot take the layer's index: span ${i} has ${span.streamLength} bytes`);
    }
    let decoded = 0;
    let start = Number.POSITIVE_INFINITY;
    let end = 0;
    for (const { blobOffset, blobLength, skip, length } of span.segments) {
      if (!(isWhole(blobOffset) && isWhole(blobLength) && isWhole(skip) && isWhole(length))) {
        throw malformed(`a segment of span ${i} is not made of whole numbers`);
      }
      if (blobOffset + blobLength > index.blobSize || skip + length > 2 * LAYER_LIMITS.spanBytes) {
        throw malformed(`a segment of span ${i} leaves the blob or its bounds`);
      }
      decoded += length;
      start = Math.min(start, blobOffset);
      end = Math.max(end, blobOffset + blobLength);
    }
    if (decoded !== span.streamLength) {
      throw malformed(`segments of span ${i} give ${decoded} bytes, not ${span.streamLength}`);
    }
    if (end - start > MAX_SPAN_BLOB_BYTES) {
      throw new LayerError('too-large', `Cannot take the layer's index: span ${i} asks for ${end - start} bytes`);
    }
    const { checkpoint } = span;
    const wrong = checkpoint !== undefined && !(isWhole(checkpoint.bits) && checkpoint.bits < 8);
    if (wrong || (checkpoint?.packedWindow.length ?? 0) > MAX_PACKED_BYTES)
      throw malformed(`the checkpoint of span ${i}`);
    const hasCheckpoints = index.format === 'gzip' || index.format === 'soci';
    if (checkpoint !== undefined && !hasCheckpoints) throw malformed(`a checkpoint in ${index.format}`);
    streamLength += span.streamLength;
  }
  return streamLength;
}

/** Returns where the last of its extents ends in the stream. */
function checkEntry(entry: LayerEntry, streamStart: number): number {
  if (!isWhole(entry.size) || (entry.type !== 'file' && (entry.size > 0 || entry.extents.length > 0))) {
    throw malformed(`${shown(entry)} is a ${entry.type} of ${entry.size} bytes`);
  }
  let streamEnd = streamStart;
  let fileEnd = 0;
  for (const { fileOffset, streamOffset, length } of entry.extents) {
    const whole = isWhole(fileOffset) && isWhole(streamOffset) && isWhole(length) && length > 0;
    if (!whole || fileOffset < fileEnd || streamOffset < streamEnd || fileOffset + length > entry.size) {
      throw malformed(`an extent of ${shown(entry)} is out of order or leaves the file`);
    }
    fileEnd = fileOffset + length;
    streamEnd = streamOffset + length;
  }
  return streamEnd;
}

function isWhole(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

function shown(entry: LayerEntry): string {
  return JSON.stringify(entry.path.subarray(0, 200).toString('utf8'));
}

function malformed(why: string): LayerError {
  return new LayerError('malformed', `Cannot take the layer's index: ${why}`);
}
