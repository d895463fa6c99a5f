/**
 * `node verify-layers-main.ts DATA_DIR`: checks every span that the layers of a node say is resident against its digest, reading the
 * files as they are on the disk, from outside the agent that serves them. Prints JSON: layers, spans, bytes, problems.
 */
import { closeSync, openSync, readFileSync, readSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { digestOfHex, sha256 } from '#shared/digest/digest.ts';
import { SpanDecoder } from '#shared/formats/span-decoder.ts';
import { parseSpanMap } from '#shared/layer/span-map-file.ts';
import { ImageWriter } from '#services/snapshotter/layers/image-writer.ts';
import { LAYER_FILES } from '#services/snapshotter/layers/layer-folder.ts';
import { parseLayerRecord } from '#services/snapshotter/layers/layer-record.ts';
import { Residency } from '#services/snapshotter/layers/residency.ts';

const root = join(process.argv[2] ?? '', 'layers');
const problems: string[] = [];
let [layers, spans, bytes] = [0, 0, 0];
using decoder = new SpanDecoder();
const image = new ImageWriter();
for (const name of readdirSync(root)) {
  if (!/^[0-9a-f]{64}$/.test(name)) continue;
  try {
    verify(name);
    layers++;
  } catch (error) {
    problems.push(`${name}: ${error instanceof Error ? error.message : String(error)}`);
  }
}
console.log(JSON.stringify({ layers, spans, bytes, problems }));

function verify(name: string): void {
  const folder = join(root, name);
  const record = parseLayerRecord(readFileSync(join(folder, LAYER_FILES.record), 'utf8'), digestOfHex(name));
  // Before the data: what it names was written earlier.
  const residency = new Residency(record.spanCount, bitmap(join(folder, LAYER_FILES.residency)));
  const mapFile = readFileSync(join(folder, LAYER_FILES.map));
  if (sha256(mapFile) !== record.mapDigest) problems.push(`${name}: its span map is not what its record says`);
  const map = parseSpanMap(mapFile);
  const fd = openSync(join(folder, LAYER_FILES.image), 'r');
  try {
    const metadata = Buffer.alloc(record.metadataSize);
    readSync(fd, metadata, 0, metadata.length, 0);
    if (sha256(metadata) !== record.metadataDigest) problems.push(`${name}: its metadata is not what its record says`);
    for (let span = 0; span < map.spanCount; span++) {
      if (!residency.has(span)) continue;
      const payload = image.read(fd, map, span);
      spans++;
      bytes += payload.length;
      try {
        decoder.decode(map, span, { form: 'payload', bytes: payload });
      } catch (error) {
        problems.push(`${name}, span ${span}: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
  } finally {
    closeSync(fd);
  }
}

/** A layer without the file has no span. */
function bitmap(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch {
    return new Uint8Array(0);
  }
}
