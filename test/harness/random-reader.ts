/**
 * `node random-reader.ts ROOT SEED`: reads files of a tree at random, whole and in parts, for ever, and compares each with what the
 * first walk's digests say. Prints one JSON line per second: reads, bytes, longest read in ms, and the reads that took long since the
 * last line; ends with code 1 at the first error or wrong byte. Digests come on stdin: lines `SHA256  PATH`, then an empty line.
 */
import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import type { LongRead } from './long-reads.ts';
import { monotonicMs } from './monotonic-clock.ts';

const PAUSE_MS = 3;
/** Of a read that waited for more than one agent to follow another. */
const LONG_MS = 300;

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
let longReads: LongRead[] = [];
let reported = performance.now();

function timedRead(path: string, fd: number, length: number, position: number | null): number {
  const startMs = monotonicMs();
  const read = readSync(fd, block, 0, length, position);
  const endMs = monotonicMs();
  longestMs = Math.max(longestMs, endMs - startMs);
  if (endMs - startMs > LONG_MS) longReads.push({ startMs, endMs, path });
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
    const read = timedRead(file.path, fd, 1 + random(block.length), null);
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
    console.log(JSON.stringify({ reads, bytes, longestMs: Math.round(longestMs), longReads }));
    longReads = [];
    reported = performance.now();
  }
  // Several of these must not take the processor from what they test; stdout is written and SIGTERM heard meanwhile.
  await sleep(PAUSE_MS);
}
