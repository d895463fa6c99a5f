import type { Digest } from '#shared/digest/digest.ts';
import { type Extent, LAYER_LIMITS, type LayerEntry, LayerError, type LayerIndex } from '#shared/layer/layer-index.ts';
import { SpanBuilder } from './span-builder.ts';
import {
  cleanTocPath,
  digestField,
  entryType,
  integer,
  malformed,
  parseModtime,
  parseToc,
  parseXattrs,
  type RawEntry,
  shown,
  text,
} from './toc-entry.ts';

export interface TocSource {
  /** The raw JSON, already checked against its digest. */
  readonly json: Uint8Array;
  readonly format: 'estargz' | 'zstd-chunked';
  readonly layer: Digest;
  readonly blobSize: number;
  /** Where the blob's files end and what describes them begins. */
  readonly dataEnd: number;
}

const PREFETCH_LANDMARK = '.prefetch.landmark';
const MAX_ID = 2 ** 32 - 1;
const MAX_DEVICE_MAJOR = 2 ** 12 - 1;
const MAX_DEVICE_MINOR = 2 ** 20 - 1;
const NO_BYTES = Buffer.alloc(0);
const NO_EXTENTS: readonly Extent[] = [];

/**
 * The index of a layer whose blob ends in a TOC, from the TOC alone.
 *
 * @throws LayerError naming layer, entry and fault; `unsupported` also where the TOC has no digest for a chunk (legacy
 * stargz): such a layer can only be indexed by streaming it.
 */
export function indexFromToc(source: TocSource): LayerIndex {
  const { layer, format, blobSize } = source;
  const raw = parseToc(source.json, layer).entries;
  const spans = new SpanBuilder(source.dataEnd);
  const entries: LayerEntry[] = [];
  const times = new Times();
  for (let at = 0; at < raw.length; ) {
    const first = raw[at];
    try {
      if (first === null || typeof first !== 'object') throw malformed('it is not an object');
      let end = at + 1;
      while (end < raw.length && raw[end]?.['type'] === 'chunk') end += 1;
      entries.push(readEntry(first, raw, at, end, source.dataEnd, spans, times));
      at = end;
    } catch (error) {
      if (!(error instanceof LayerError)) throw error;
      const name = first === null || typeof first !== 'object' ? '' : first['name'];
      throw new LayerError(
        error.code,
        `Refused the TOC of layer ${layer}: entry ${at} (${shown(name)}): ${error.message}`,
        { cause: error },
      );
    }
  }
  return { layer, blobSize, diffId: undefined, format, entries, ...finish(spans, layer) };
}

function finish(spans: SpanBuilder, layer: Digest): Pick<LayerIndex, 'spans' | 'prioritySpans'> {
  try {
    return spans.finish();
  } catch (error) {
    if (!(error instanceof LayerError)) throw error;
    throw new LayerError(error.code, `Refused the TOC of layer ${layer}: ${error.message}`, { cause: error });
  }
}

/** Most entries of a layer share a few times. */
class Times {
  #text = '';
  #time = { seconds: 0, nanoseconds: 0 };

  parse(value: string): { readonly seconds: number; readonly nanoseconds: number } {
    if (value !== this.#text) {
      this.#time = parseModtime(value);
      this.#text = value;
    }
    return this.#time;
  }
}

/** Entry `at`, whose further chunks are the entries up to `end`. */
function readEntry(
  first: RawEntry,
  raw: readonly RawEntry[],
  at: number,
  end: number,
  dataEnd: number,
  spans: SpanBuilder,
  times: Times,
): LayerEntry {
  if (first['type'] === 'chunk') throw malformed('a chunk without a file before it');
  const type = entryType(first);
  const name = text(first, 'name');
  if (type !== 'file' && end > at + 1) throw malformed(`a ${type} with chunks`);
  const size = type === 'file' ? integer(first, 'size', LAYER_LIMITS.imageBytes) : 0;
  const time = times.parse(text(first, 'modtime'));
  const isDevice = type === 'character' || type === 'block';
  const path = cleanTocPath(name);
  if (size > 0 && path.length === PREFETCH_LANDMARK.length && path.toString() === PREFETCH_LANDMARK) {
    spans.landmark(integer(first, 'offset', dataEnd));
  }
  return {
    path,
    type,
    // Go's tar header mode: file type bits of old producers are not ours.
    mode: integer(first, 'mode', MAX_ID) & 0o7777,
    uid: integer(first, 'uid', MAX_ID),
    gid: integer(first, 'gid', MAX_ID),
    mtimeSeconds: time.seconds,
    mtimeNanoseconds: time.nanoseconds,
    size,
    linkName: linkName(first, type),
    deviceMajor: isDevice ? integer(first, 'devMajor', MAX_DEVICE_MAJOR) : 0,
    deviceMinor: isDevice ? integer(first, 'devMinor', MAX_DEVICE_MINOR) : 0,
    xattrs: parseXattrs(first),
    extents: size === 0 ? NO_EXTENTS : readChunks(first, raw, at, end, size, dataEnd, spans),
  };
}

function linkName(entry: RawEntry, type: LayerEntry['type']): Buffer {
  if (type === 'hardlink') return cleanTocPath(text(entry, 'linkName'));
  if (type !== 'symlink') return NO_BYTES;
  const target = Buffer.from(text(entry, 'linkName'));
  if (target.length === 0 || target.length >= LAYER_LIMITS.pathBytes || target.includes(0)) {
    throw malformed('its link target is empty, too long, or has a NUL byte');
  }
  return target;
}

function readChunks(
  file: RawEntry,
  raw: readonly RawEntry[],
  at: number,
  end: number,
  size: number,
  dataEnd: number,
  spans: SpanBuilder,
): readonly Extent[] {
  const extents: Extent[] = [];
  let fileOffset = 0;
  for (let index = at; index < end; index += 1) {
    const chunk = index === at ? file : (raw[index] as RawEntry);
    if (integer(chunk, 'chunkOffset', size) !== fileOffset) {
      throw malformed(`its chunk ${index - at} begins at ${shown(chunk['chunkOffset'])}, not at ${fileOffset}`);
    }
    const length = integer(chunk, 'chunkSize', size) || size - fileOffset;
    if (length === 0 || fileOffset + length > size) {
      throw malformed(`its chunk ${index - at} passes the file's size, ${size}`);
    }
    if (text(chunk, 'chunkType') !== 'zeros') {
      const digest = digestField(chunk, 'chunkDigest') ?? (length === size ? digestField(file, 'digest') : undefined);
      if (digest === undefined) {
        throw new LayerError('unsupported', `its chunk ${index - at} has no digest`);
      }
      const blobEnd = integer(chunk, 'endOffset', dataEnd);
      const streamOffset = spans.add({
        fileOffset,
        length,
        blobOffset: integer(chunk, 'offset', dataEnd),
        // Of a file with chunks it is the end of the last one, on the first entry.
        blobEnd: blobEnd === 0 || end > at + 1 ? undefined : blobEnd,
        innerOffset: integer(chunk, 'innerOffset', LAYER_LIMITS.imageBytes),
        digest,
      });
      extents.push({ fileOffset, streamOffset, length });
    }
    fileOffset += length;
  }
  if (fileOffset !== size) throw malformed(`its chunks end at ${fileOffset}, its size is ${size}`);
  return extents;
}
