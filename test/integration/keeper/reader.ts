/**
 * Reads a pattern file at random offsets, past the page cache where it can, and checks every byte, until its standard input
 * closes. Prints one JSON line: reads, wrong bytes, errors, the longest wait.
 */
import { patternBytes } from '#services/snapshotter/fuse/test-files.ts';
import { constants, open } from 'node:fs/promises';

const path = process.argv[2] ?? '';
const readers = Number(process.argv[3] ?? 4);
const report = { reads: 0, wrong: 0, errors: [] as string[], longestMs: 0 };
const file = await open(path, constants.O_RDONLY | constants.O_DIRECT);
const { size } = await file.stat();
const over = new AbortController();
process.stdin.resume();
process.stdin.once('end', () => over.abort());
console.log('reading');
let seed = 12345;
const random = (below: number): number => {
  seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
  return seed % below;
};
await Promise.all(
  Array.from({ length: readers }, async () => {
    const buffer = Buffer.alloc(64 * 1024);
    while (!over.signal.aborted) {
      const offset = random(Math.floor(size / 4096)) * 4096;
      const startedAt = performance.now();
      try {
        const { bytesRead } = await file.read(buffer, 0, buffer.length, offset);
        const expected = patternBytes(offset, Math.min(buffer.length, size - offset));
        if (!buffer.subarray(0, bytesRead).equals(expected)) report.wrong++;
        report.reads++;
      } catch (error) {
        report.errors.push(String(error));
        if (report.errors.length > 3) break;
      }
      report.longestMs = Math.max(report.longestMs, Math.round(performance.now() - startedAt));
    }
  }),
);
console.log(JSON.stringify(report));
