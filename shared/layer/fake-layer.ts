/** Small layers for tests: a tar is its own blob, so an index of it needs no compression. */
import { sha256 } from '#shared/digest/digest.ts';
import { TAR_END, tarHeader, tarPadding } from '#shared/tar/tar-writer.ts';
import { TarReader } from '#shared/tar/tar-reader.ts';
import type { EntryType, IndexSpan, LayerEntry, LayerIndex } from './layer-index.ts';
import type { LayerImage } from './layer-image.ts';
import { parseSpanMap } from './span-map-file.ts';

export interface FakeMember {
  readonly entry: LayerEntry;
  readonly content: Buffer;
}

type Fields = Partial<Omit<LayerEntry, 'path' | 'type' | 'linkName'>> & { readonly linkName?: string | Buffer };

export function fakeEntry(path: string | Buffer, type: EntryType = 'file', fields: Fields = {}): LayerEntry {
  return {
    path: Buffer.from(path),
    type,
    mode: type === 'directory' ? 0o755 : 0o644,
    uid: 0,
    gid: 0,
    mtimeSeconds: 1_700_000_000,
    mtimeNanoseconds: 0,
    size: 0,
    deviceMajor: 0,
    deviceMinor: 0,
    xattrs: [],
    extents: [],
    ...fields,
    linkName: Buffer.from(fields.linkName ?? ''),
  };
}

export function fakeMember(
  path: string | Buffer,
  type: EntryType = 'file',
  content: Buffer | string = '',
  fields: Fields = {},
): FakeMember {
  const bytes = Buffer.from(content);
  return { entry: fakeEntry(path, type, { size: bytes.length, ...fields }), content: bytes };
}

export function fakeTar(members: readonly FakeMember[]): Buffer {
  return Buffer.concat([
    ...members.flatMap(({ entry, content }) => [tarHeader(entry), content, tarPadding(content.length)]),
    TAR_END,
  ]);
}

/** The index of a plain tar, cut into spans of `spanBytes`, a piece for each. */
export function indexOfTar(tar: Buffer, spanBytes: number): LayerIndex {
  const entries: LayerEntry[] = [];
  const payload: { readonly start: number; readonly bytes: Uint8Array }[] = [];
  const reader = new TarReader({
    entry: (entry) => entries.push(entry),
    payload: (bytes, start) => payload.push({ start, bytes }),
  });
  for (let at = 0; at < tar.length; at += 10_007) reader.push(tar.subarray(at, at + 10_007));
  reader.end();
  const spans: IndexSpan[] = [];
  for (let start = 0; start < tar.length; start += spanBytes) {
    const length = Math.min(spanBytes, tar.length - start);
    const own = Buffer.concat(
      payload.map((run) => run.bytes.subarray(Math.max(0, start - run.start), Math.max(0, start + length - run.start))),
    );
    spans.push({
      streamLength: length,
      segments: [{ blobOffset: start, blobLength: length, skip: 0, length }],
      pieces: own.length === 0 ? [] : [{ length: own.length, digest: sha256(own) }],
      checkpoint: undefined,
    });
  }
  return {
    layer: sha256(tar),
    blobSize: tar.length,
    diffId: sha256(tar),
    format: 'tar',
    entries,
    spans,
    prioritySpans: 0,
  };
}

/** The whole image, each span's payload put where the map says. */
export function fillImage(image: LayerImage, tar: Buffer): Buffer {
  const map = parseSpanMap(image.map);
  const file = Buffer.alloc(image.imageSize);
  image.metadata.copy(file);
  for (let span = 0; span < map.spanCount; span++) {
    const start = map.blobStart(span);
    for (const { decodedOffset, imageOffset, length } of map.extents(span)) {
      tar.copy(file, imageOffset, start + decodedOffset, start + decodedOffset + length);
    }
  }
  return file;
}
