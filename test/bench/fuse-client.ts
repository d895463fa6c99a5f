/**
 * Part of `bench -- fuse`: reads a file in one way and prints the milliseconds it took and a checksum of what it read.
 * Arguments: `calls` (4 KiB, past the page cache, one after the other), `parallel` (the same, 8 at a time), `sequential`
 * (1 MiB, through the page cache, which is dropped before); the file; number of calls.
 */
import { execFileSync } from 'node:child_process';
import { constants, openSync, readSync } from 'node:fs';
import { open } from 'node:fs/promises';

const [kind, path = '', count = '0'] = process.argv.slice(2);
const calls = Number(count);
const PAGE = 4096;
let sum = 0;
let startedAt = performance.now();

if (kind === 'sequential') {
  execFileSync('dd', [`if=${path}`, 'iflag=nocache', 'count=0', 'of=/dev/null', 'status=none']);
  const fd = openSync(path, constants.O_RDONLY);
  const buffer = Buffer.alloc(1024 * 1024);
  let total = 0;
  let wrong = 0;
  startedAt = performance.now();
  for (let bytes = readSync(fd, buffer); bytes > 0; bytes = readSync(fd, buffer)) {
    // Only a word of each block: the sum must not cost what is measured.
    for (let at = 0; at < bytes; at += PAGE) if (buffer.readUInt32LE(at) !== (total + at) / PAGE) wrong++;
    total += bytes;
  }
  sum = wrong;
} else {
  const file = await open(path, constants.O_RDONLY | constants.O_DIRECT);
  const pages = Math.floor((await file.stat()).size / PAGE);
  const offsets = Array.from({ length: calls }, (_, index) => ((index * 7919) % pages) * PAGE);
  startedAt = performance.now();
  if (kind === 'calls') {
    const buffer = Buffer.alloc(PAGE);
    for (const offset of offsets) {
      readSync(file.fd, buffer, 0, PAGE, offset);
      if (buffer.readUInt32LE(0) !== offset / PAGE) sum++;
    }
  } else {
    const left = offsets.values();
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        const buffer = Buffer.alloc(PAGE);
        for (const offset of left) {
          await file.read(buffer, 0, PAGE, offset);
          if (buffer.readUInt32LE(0) !== offset / PAGE) sum++;
        }
      }),
    );
  }
}
console.log(JSON.stringify({ ms: performance.now() - startedAt, wrong: sum }));
