/**
 * `node random-reader.ts ROOT SEED`: reads files of a tree at random, whole and in parts, for ever, and compares each with what the
 * first walk's digests say. Prints one JSON line per second: reads, bytes, longest read in ms; ends with code 1 at the first error
 * or wrong byte. Digests come on stdin: lines `SHA256  PATH`, then an empty line.
 */
import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

const PAUSE_MS = 3;

const [root = '', seed = '1'] = process.argv.slice(2);
const files: { readonly path: string; readonly sha256: string }[] = [];
for await (const line of createInterface({ input: process.stdin })) {
  if (line === '') break;
  files.push({ sha256: line.slice(0, 64), path: line.slice(66) });
}

let state = Number(seed) >>> 0;
function random(below: number): number {
  state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) >>> 0;
  return state % below;
}

const block = Buffer.alloc(128 * 1024);
let [reads, bytes, longestMs] = [0, 0, 0];
let reported = performance.now();

function timedRead(fd: number, length: number, position: number | null): number {
  const started = performance.now();
  const read = readSync(fd, block, 0, length, position);
  longestMs = Math.max(longestMs, performance.now() - started);
  reads++;
  bytes += read;
  return read;
}

for (;;) {
  const file = files[random(files.length)];
  if (file === undefined) throw new Error('There is no file to read');
  const fd = openSync(`${root}/${file.path}`, 'r');
  const hash = createHash('sha256');
  for (;;) {
    const read = timedRead(fd, 1 + random(block.length), null);
    if (read === 0) break;
    hash.update(block.subarray(0, read));
  }
  closeSync(fd);
  const actual = hash.digest('hex');
  if (actual !== file.sha256) {
    console.error(`${file.path}: ${actual} instead of ${file.sha256}`);
    process.exit(1);
  }
  if (performance.now() - reported > 1000) {
    console.log(JSON.stringify({ reads, bytes, longestMs: Math.round(longestMs) }));
    reported = performance.now();
  }
  // Several of these must not take the processor from what they test; stdout is written and SIGTERM heard meanwhile.
  await sleep(PAUSE_MS);
}
