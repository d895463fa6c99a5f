import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { after, test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import { WorkerPool } from './worker-pool.ts';

const folder = await mkdtemp(join(tmpdir(), 'kindling-pool-'));
after(() => rm(folder, { recursive: true }));

/** A job of span 1 waits for the gate; 5 says early that a part is there; 13 is an error, 666 takes the thread down; others are answered at once. */
const ENTRY = join(folder, 'worker.mjs');
await writeFile(
  ENTRY,
  `import { parentPort } from 'node:worker_threads';
   parentPort.on('message', (job) => {
     if (job.kind === 'end') return parentPort.close();
     if (job.span === 666) throw new Error('out of luck');
     if (job.span === 13) return parentPort.postMessage({ error: { code: 'ENOSPC', message: 'no space' } });
     if (job.span === 5) parentPort.postMessage({ early: true });
     if (job.span === 1) Atomics.wait(new Int32Array(job.map.bytes), 0, 0);
     parentPort.postMessage({ result: true });
   });`,
);

function setup() {
  const map = { layer: sha256(Buffer.from('a layer')), bytes: new SharedArrayBuffer(4) };
  const gate = new Int32Array(map.bytes);
  return {
    pool: new WorkerPool({ size: 2, entry: pathToFileURL(ENTRY) }),
    job: (span: number) => ({ kind: 'verify', map, fd: 0, span }) as const,
    open: () => {
      gate[0] = 1;
      Atomics.notify(gate, 0);
    },
  };
}

test('what is below demand never takes the last thread', async () => {
  const { pool, job, open } = setup();
  const background = [1, 2, 3].map(async () => await pool.run(job(1), 'background'));
  await pool.run(job(0), 'demand');
  open();
  assert.deepEqual(await Promise.all(background), [true, true, true]);
  await pool.close();
});

test('a thread that ends takes its own job with it and no other', async () => {
  const { pool, job } = setup();
  const [crashed, fine] = await Promise.allSettled([pool.run(job(666), 'demand'), pool.run(job(0), 'demand')]);
  assert.equal(crashed.status, 'rejected');
  assert.equal(crashed.reason.code, 'crashed');
  assert.equal(fine.status, 'fulfilled');
  assert.equal(await pool.run(job(0), 'background'), true);
  await pool.close();
});

test('an error keeps its code, and a pool that is closed refuses what it has not begun', async () => {
  const { pool, job, open } = setup();
  await assert.rejects(pool.run(job(13), 'demand'), { name: 'WorkerError', code: 'ENOSPC' });
  const begun = pool.run(job(1), 'background');
  const waiting = assert.rejects(pool.run(job(0), 'background'), { code: 'closed' });
  const closed = pool.close();
  await waiting;
  open();
  await closed;
  assert.equal(await begun, true);
  await assert.rejects(pool.run(job(0), 'demand'), { code: 'closed' });
});

test('a job that becomes urgent goes before what was queued earlier, and may be changed until a thread takes it', async () => {
  const { pool, job, open } = setup();
  const order: string[] = [];
  const note = (name: string, run: Promise<unknown>) => run.then(() => order.push(name));
  const blocked = pool.run(job(1), 'background');
  const first = note('first', pool.run(job(0), 'prefetch'));
  const urgent = job(5);
  const second = note(
    'second',
    pool.run(urgent, 'prefetch', [], () => order.push('early')),
  );
  pool.promote(urgent, () => order.push('changed'));
  await second;
  // The one thread that is not kept for demand is blocked.
  assert.deepEqual(order, ['changed', 'early', 'second']);
  pool.promote(urgent, () => order.push('changed again'));
  open();
  await Promise.all([blocked, first]);
  assert.deepEqual(order, ['changed', 'early', 'second', 'first']);
  await pool.close();
});
