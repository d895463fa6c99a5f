import { closeSync, openSync, readlinkSync, readSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parentPort, type MessagePort } from 'node:worker_threads';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { indexFromZtoc } from '#shared/formats/soci/index-from-ztoc.ts';
import { releaseBytes } from '#shared/formats/release-bytes.ts';
import { type EarlyParts, SpanDecoder } from '#shared/formats/span-decoder.ts';
import { indexFromToc } from '#shared/formats/toc/index-from-toc.ts';
import { type FoundToc, tocFromOutside, tocFromTail } from '#shared/formats/toc/toc-tail.ts';
import { decodeLayerIndex } from '#shared/layer/index-codec.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { LayerError, type LayerIndex } from '#shared/layer/layer-index.ts';
import { parseSpanMap, type DecodableSpanMap } from '#shared/layer/span-map-file.ts';
import { SPAN_MAP_HEADER_BYTES } from '#shared/layer/span-map-layout.ts';
import { layOut } from './built-layer.ts';
import { ImageWriter, writeFully } from './image-writer.ts';
import { LAYER_FILES } from './layer-folder.ts';
import { Residency } from './residency.ts';
import type { SharedMap, WorkerAnswer, WorkerJob, WorkerResults } from './worker-job.ts';

/** Parsed maps kept in a thread; the bytes are shared, so one costs next to nothing. */
const MAPS = 32;

const decoder = new SpanDecoder();
const writer = new ImageWriter();
const maps = new Map<Digest, { readonly bytes: SharedArrayBuffer; readonly map: DecodableSpanMap }>();

function mapOf({ layer, bytes }: SharedMap): DecodableSpanMap {
  const known = maps.get(layer);
  maps.delete(layer);
  // Two buffers for the same memory are not the same object: one is made for each message. A layer may come back with another map
  // (first by a SOCI index, then by a whole one); the header has the digest of all that follows it.
  const entry =
    known !== undefined && headerOf(known.bytes).equals(headerOf(bytes))
      ? known
      : { bytes, map: parseSpanMap(new Uint8Array(bytes)) };
  maps.set(layer, entry);
  for (const oldest of maps.keys()) {
    if (maps.size <= MAPS) break;
    maps.delete(oldest);
  }
  return entry.map;
}

function headerOf(map: SharedArrayBuffer): Buffer {
  return Buffer.from(map, 0, Math.min(SPAN_MAP_HEADER_BYTES, map.byteLength));
}

/** `early`: to be called when what was wanted of a `store` job is readable, where that is before all of it is. */
function run(job: WorkerJob, early: () => void): WorkerResults[keyof WorkerResults] {
  switch (job.kind) {
    case 'store': {
      const map = mapOf(job.map);
      let payload: Uint8Array;
      try {
        payload = decoder.decode(map, job.span, { form: job.form, bytes: job.bytes }, earlyParts(job, early));
      } catch (error) {
        if (error instanceof LayerError) return 'mismatch';
        throw error;
      }
      writer.write(job.fd, map, job.span, payload);
      releaseBytes(payload);
      releaseBytes(job.bytes);
      return 'stored';
    }
    case 'verify': {
      const map = mapOf(job.map);
      try {
        decoder.decode(map, job.span, { form: 'payload', bytes: writer.read(job.fd, map, job.span) });
        return true;
      } catch (error) {
        if (error instanceof LayerError) return false;
        throw error;
      }
    }
    case 'check': {
      if (sha256(new Uint8Array(job.map.bytes)) !== job.mapDigest) return false;
      const metadata = Buffer.allocUnsafe(job.metadataSize);
      let at = 0;
      while (at < metadata.length) {
        const bytes = readSync(job.fd, metadata, at, metadata.length - at, at);
        if (bytes === 0) return false;
        at += bytes;
      }
      return sha256(metadata) === job.metadataDigest;
    }
    case 'build-index': {
      const built = layOut(decodeLayerIndex(job.index, job.layer), job.folder);
      writeFileSync(join(job.folder, LAYER_FILES.index), job.index, { mode: 0o600 });
      return { ...built.layer, indexDigest: sha256(job.index) };
    }
    case 'compare-index': {
      const index = decodeLayerIndex(job.index, job.layer);
      const { metadata, map } = buildLayerImage(index);
      const same = sha256(metadata) === job.metadataDigest && sha256(map) === job.mapDigest;
      return { same, diffId: index.diffId };
    }
    case 'build-tail': {
      const { layer, tail, blobSize, annotations, folder } = job;
      const found = tocFromTail({ tail, blobSize, layer, annotations });
      if (found.kind === 'more' || found.kind === 'external') return found;
      const index = found.kind === 'toc' ? indexOf(found, layer, blobSize) : undefined;
      if (index === undefined) return { kind: 'no-toc' };
      const built = layOut(index, folder);
      const spansStored = tail.length === blobSize ? storeAll(folder, built.map, tail) : 0;
      return { kind: 'built', layer: built.layer, spansStored };
    }
    case 'build-toc': {
      const { layer, toc, dataEnd, blobSize, annotations, folder } = job;
      const found = tocFromOutside(toc, dataEnd, { layer, blobSize, annotations });
      const index = found && indexOf(found, layer, blobSize);
      return index && layOut(index, folder).layer;
    }
    case 'build-ztoc':
      return layOut(indexFromZtoc(job), job.folder).layer;
    case 'end':
      return undefined;
  }
}

/** undefined where chunks have no digests (legacy stargz): only the whole blob vouches for them. */
function indexOf(toc: FoundToc, layer: Digest, blobSize: number): LayerIndex | undefined {
  try {
    return indexFromToc({ ...toc, layer, blobSize });
  } catch (error) {
    if (error instanceof LayerError && error.code === 'unsupported') return undefined;
    throw error;
  }
}

/** Stores what readers wait for, and says so. */
function earlyParts({ fd, wanted }: WorkerJob & { readonly kind: 'store' }, early: () => void): EarlyParts | undefined {
  if (wanted.length === 0) return undefined;
  const ready: EarlyParts['ready'] = (parts) => {
    try {
      for (const { imageOffset, bytes } of parts) writeFully(fd, bytes, bytes.length, imageOffset);
    } catch {
      // A full disk: it is told, and room made, when the whole span is to be written.
      return;
    }
    early();
  };
  return { wanted, ready };
}

/** A small layer's blob has come whole with its TOC: no second request for it. */
function storeAll(folder: string, map: DecodableSpanMap, blob: Uint8Array): number {
  const residency = new Residency(map.spanCount);
  const fd = openSync(join(folder, LAYER_FILES.image), 'r+');
  try {
    for (let span = 0; span < map.spanCount; span++) {
      const bytes = blob.subarray(map.blobStart(span), map.blobEnd(span));
      writer.write(fd, map, span, decoder.decode(map, span, { form: 'compressed', bytes }));
      residency.add(span);
    }
  } catch (error) {
    // Bytes that are wrong are asked for again when somebody reads them.
    if (!(error instanceof LayerError)) throw error;
  } finally {
    closeSync(fd);
  }
  writeFileSync(join(folder, LAYER_FILES.residency), residency.toBytes(), { mode: 0o600 });
  return residency.count;
}

/** Linux counts threads like processes. undefined: it does not say. */
function threadNumber(): number | undefined {
  try {
    return Number(/\/task\/(\d+)$/.exec(readlinkSync('/proc/thread-self'))?.[1]);
  } catch {
    return undefined;
  }
}

function serve(port: MessagePort): void {
  const thread = threadNumber();
  if (thread !== undefined && thread > 0) port.postMessage({ thread } satisfies WorkerAnswer);
  port.on('message', (job: WorkerJob) => {
    if (job.kind === 'end') {
      port.close();
      return;
    }
    let answer: WorkerAnswer;
    try {
      answer = { result: run(job, () => port.postMessage({ early: true } satisfies WorkerAnswer)) };
    } catch (error) {
      const code = error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : 'failed';
      answer = { error: { code, message: error instanceof Error ? error.message : String(error) } };
    }
    port.postMessage(answer);
  });
}

if (parentPort !== null) serve(parentPort);
