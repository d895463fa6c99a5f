/**
 * `node takeover-reader.ts here|missing`: reads blocks of layer images, past the page cache, and prints a JSON line for each read that
 * took long: when it began and ended, in ms since the epoch. The places come on stdin: one JSON line per read, `[path, offset]`.
 * `here` reads them again and again without a pause, `missing` each once with a pause, since each is to cost a fetch.
 */
import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

const BLOCK_BYTES = 4096;
/** Far above what a read from an agent that serves takes, far below a take-over. */
const LONG_MS = 40;
const PAUSE_MS = { here: 2, missing: 150 } as const;

const mode = process.argv[2] === 'here' ? 'here' : 'missing';
const places: [string, number][] = [];
for await (const line of createInterface({ input: process.stdin })) places.push(JSON.parse(line) as [string, number]);

const files = new Map<string, FileHandle>();
const block = Buffer.alloc(2 * BLOCK_BYTES);
// O_DIRECT takes a buffer that begins at a block.
const view = new Uint8Array(block.buffer, Math.ceil(block.byteOffset / BLOCK_BYTES) * BLOCK_BYTES, BLOCK_BYTES);
const now = (): number => performance.timeOrigin + performance.now();

const reads = mode === 'here' ? Number.POSITIVE_INFINITY : places.length;
for (let at = 0; at < reads; at++) {
  const [path, offset] = places[at % places.length] ?? ['', 0];
  let file = files.get(path);
  if (file === undefined) {
    file = await open(path, constants.O_RDONLY | constants.O_DIRECT);
    files.set(path, file);
  }
  const startMs = now();
  const { bytesRead } = await file.read(view, 0, BLOCK_BYTES, offset);
  const endMs = now();
  if (bytesRead === 0) throw new Error(`${path} ends before ${offset}`);
  if (endMs - startMs > LONG_MS) console.log(JSON.stringify({ startMs, endMs }));
  await sleep(PAUSE_MS[mode]);
}
console.error('Every place was read: there is nothing left that is missing');
process.exitCode = 1;
