import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import { type Digest, isDigest, sha256 } from '#shared/digest/digest.ts';
import { parseEstargzFooter } from '#shared/formats/estargz/estargz-footer.ts';
import { parseZstdChunkedFooter, SKIPPABLE_HEADER_BYTES } from '#shared/formats/zstd-chunked/zstd-chunked-footer.ts';
import { LayerError } from '#shared/layer/layer-index.ts';

/**
 * What to read first of a blob that may end in a TOC: enough for footer and TOC of most layers, so that one request does.
 * A TOC takes about 45 compressed bytes an entry.
 */
export const TAIL_BYTES = 512 * 1024;

/** Bytes of a decoded TOC; a million entries take about 300 MB and no real layer comes near. */
const MAX_TOC_BYTES = 256 * 1024 * 1024;
/** Bytes of a compressed TOC: what we fetch and hold at most. */
export const MAX_COMPRESSED_TOC_BYTES = 64 * 1024 * 1024;

const TAR_BLOCK_BYTES = 512;
const TOC_NAME = 'stargz.index.json';

export const TOC_DIGEST_ANNOTATION = 'containerd.io/snapshot/stargz/toc.digest';
export const ZSTD_CHUNKED_CHECKSUM_ANNOTATIONS = [
  'io.github.containers.zstd-chunked.manifest-checksum',
  'io.containers.zstd-chunked.manifest-checksum',
] as const;

export interface FoundToc {
  readonly kind: 'toc';
  readonly format: 'estargz' | 'zstd-chunked';
  readonly json: Buffer;
  /** Where the blob's files end. */
  readonly dataEnd: number;
}

export type TocSearch =
  | FoundToc
  /** The tail is too short: call again with the blob's bytes from here to its end. */
  | { readonly kind: 'more'; readonly from: number }
  /** The TOC lies outside of the blob: see `tocFromOutside`. The blob's files end at `dataEnd`. */
  | { readonly kind: 'external'; readonly dataEnd: number }
  /** The blob has no TOC that can be used; why, for people. */
  | { readonly kind: 'none'; readonly reason: string };

export interface TailSource {
  /** The last bytes of the blob. */
  readonly tail: Uint8Array;
  readonly blobSize: number;
  readonly layer: Digest;
  /** Of the layer's descriptor: they carry the digest that the TOC is checked against. */
  readonly annotations: Readonly<Record<string, string>>;
}

/**
 * Finds and verifies the TOC in the end of a blob.
 *
 * @throws LayerError when there is a TOC but it is malformed, too large, or not what the annotation promises. Without an
 * annotation nothing vouches for a TOC before the whole blob was read: then the answer is `none`.
 */
export function tocFromTail(source: TailSource): TocSearch {
  const tail = Buffer.from(source.tail.buffer, source.tail.byteOffset, source.tail.byteLength);
  const gzip = parseEstargzFooter(tail);
  if (gzip?.kind === 'external') {
    if (expectedDigest(source, [TOC_DIGEST_ANNOTATION]) === undefined) return unvouched(TOC_DIGEST_ANNOTATION);
    return { kind: 'external', dataEnd: source.blobSize - gzip.footerBytes };
  }
  if (gzip !== undefined) {
    const expected = expectedDigest(source, [TOC_DIGEST_ANNOTATION]);
    if (expected === undefined) return unvouched(TOC_DIGEST_ANNOTATION);
    const end = source.blobSize - gzip.footerBytes;
    const section = cut(source, tail, gzip.tocOffset, end);
    if (!Buffer.isBuffer(section)) return section;
    const json = jsonOfMember(section, source.layer);
    check(expected, [json], source.layer);
    return { kind: 'toc', format: 'estargz', json, dataEnd: gzip.tocOffset };
  }
  const zstd = parseZstdChunkedFooter(tail);
  if (zstd !== undefined) {
    const expected = expectedDigest(source, [...ZSTD_CHUNKED_CHECKSUM_ANNOTATIONS, TOC_DIGEST_ANNOTATION]);
    if (expected === undefined) return unvouched(ZSTD_CHUNKED_CHECKSUM_ANNOTATIONS[0]);
    if (zstd.manifestDecodedBytes > MAX_TOC_BYTES)
      throw tooLarge(source.layer, zstd.manifestDecodedBytes, MAX_TOC_BYTES);
    const end = zstd.manifestOffset + zstd.manifestBytes;
    const section = cut(source, tail, zstd.manifestOffset, end);
    if (!Buffer.isBuffer(section)) return section;
    // Podman's checksum is of the compressed manifest, the TOC digest of eStargz's tools of the JSON.
    const json = decode(() => zstdDecompressSync(section, { maxOutputLength: MAX_TOC_BYTES }), source.layer);
    check(expected, [section, json], source.layer);
    return { kind: 'toc', format: 'zstd-chunked', json, dataEnd: zstd.manifestOffset - SKIPPABLE_HEADER_BYTES };
  }
  return { kind: 'none', reason: 'its blob does not end in a footer of eStargz or zstd:chunked' };
}

/**
 * The TOC of a blob that ends in the footer of an external one.
 *
 * @param toc as `findExternalToc` finds it; nobody has checked it
 * @returns undefined where it is not the one that the layer's annotation promises: what lies beside an image may be of an older or a
 * newer one, and then the layer is as good as without
 */
export function tocFromOutside(
  toc: Uint8Array,
  dataEnd: number,
  source: Omit<TailSource, 'tail'>,
): FoundToc | undefined {
  const expected = expectedDigest(source, [TOC_DIGEST_ANNOTATION]);
  if (expected === undefined || toc.length > MAX_COMPRESSED_TOC_BYTES) return undefined;
  let json: Buffer;
  try {
    json = jsonOfMember(Buffer.from(toc.buffer, toc.byteOffset, toc.byteLength), source.layer);
  } catch (error) {
    if (error instanceof LayerError) return undefined;
    throw error;
  }
  return sha256(json) === expected ? { kind: 'toc', format: 'estargz', json, dataEnd } : undefined;
}

function unvouched(annotation: string): TocSearch {
  return { kind: 'none', reason: `its descriptor has no annotation ${annotation}, so nothing vouches for its TOC` };
}

function expectedDigest(source: Omit<TailSource, 'tail'>, names: readonly string[]): Digest | undefined {
  for (const name of names) {
    const value = source.annotations[name];
    if (value === undefined) continue;
    if (!isDigest(value)) {
      throw new LayerError(
        'malformed',
        `Refused layer ${source.layer}: its annotation ${name} is not "sha256:" and 64 hex digits`,
      );
    }
    return value;
  }
  return undefined;
}

/** The blob's bytes [start, end) out of its tail. */
function cut(source: TailSource, tail: Buffer, start: number, end: number): Buffer | TocSearch {
  if (start < 0 || end <= start || end > source.blobSize) {
    throw new LayerError(
      'malformed',
      `Refused layer ${source.layer}: its footer puts the TOC at ${start} to ${end} of a blob of ${source.blobSize} bytes`,
    );
  }
  if (end - start > MAX_COMPRESSED_TOC_BYTES) throw tooLarge(source.layer, end - start, MAX_COMPRESSED_TOC_BYTES);
  const tailStart = source.blobSize - tail.length;
  if (start < tailStart) return { kind: 'more', from: start };
  return tail.subarray(start - tailStart, end - tailStart);
}

function tooLarge(layer: Digest, bytes: number, max: number): LayerError {
  return new LayerError('too-large', `Refused the TOC of layer ${layer}: ${bytes} bytes, at most ${max}`);
}

function decode(run: () => Buffer, layer: Digest): Buffer {
  try {
    return run();
  } catch (cause) {
    if (cause instanceof RangeError) throw tooLarge(layer, MAX_TOC_BYTES, MAX_TOC_BYTES);
    throw new LayerError('malformed', `Cannot read the TOC of layer ${layer}: it does not decompress`, { cause });
  }
}

/** The TOC's gzip member holds a tar of one file. */
function jsonOfMember(section: Buffer, layer: Digest): Buffer {
  const tar = decode(() => gunzipSync(section, { maxOutputLength: MAX_TOC_BYTES, chunkSize: 256 * 1024 }), layer);
  const name = tar.toString('latin1', 0, TOC_NAME.length + 1);
  const size = Number.parseInt(tar.toString('latin1', 124, 136), 8);
  if (name !== `${TOC_NAME}\0` || !Number.isInteger(size) || size < 0 || TAR_BLOCK_BYTES + size > tar.length) {
    throw new LayerError('malformed', `Cannot read the TOC of layer ${layer}: it is not a tar of ${TOC_NAME}`);
  }
  return tar.subarray(TAR_BLOCK_BYTES, TAR_BLOCK_BYTES + size);
}

function check(expected: Digest, candidates: readonly Buffer[], layer: Digest): void {
  if (candidates.some((bytes) => sha256(bytes) === expected)) return;
  throw new LayerError('digest-mismatch', `Refused the TOC of layer ${layer}: its digest is not ${expected}`);
}
