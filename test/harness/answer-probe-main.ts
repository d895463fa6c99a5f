/**
 * `node answer-probe-main.ts FILE`: reads the first bytes of a layer image again and again, past the page cache, so that each
 * read is answered by the agent. Prints `START END` (monotonic clock of the machine, ms) of reads that took long, and of one
 * read now and then; ends with code 1 at the first error.
 */
import { constants, openSync, readSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

const PAUSE_MS = 2;
const LONG_MS = 5;
const SAY_EVERY_MS = 25;

const fd = openSync(process.argv[2] ?? '', constants.O_RDONLY | constants.O_DIRECT);
const block = Buffer.alloc(4096);
const now = (): number => Number(process.hrtime.bigint()) / 1e6;
let said = 0;
for (;;) {
  const start = now();
  readSync(fd, block, 0, block.length, 0);
  const end = now();
  if (end - start >= LONG_MS || end - said >= SAY_EVERY_MS) {
    said = end;
    console.log(`${start} ${end}`);
  }
  await sleep(PAUSE_MS);
}
