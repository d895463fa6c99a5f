import { parentPort, workerData } from 'node:worker_threads';
import { LayerError } from '#shared/layer/layer-index.ts';
import { AnyWalker } from './any-walker.ts';
import { WALK_BUFFER_BYTES, type WalkSink } from './stream-walker.ts';
import { RING_SLOTS, type WalkOrder, type WalkReport, type WalkThreadData } from './walk-message.ts';

const port = parentPort;
if (port === null) throw new Error('walk-worker.ts is for a worker thread');

const { blobSize, input, ring, freed } = workerData as WalkThreadData;
const freedCount = new Int32Array(freed);
let used = 0;
let isRefused = false;

function report(message: WalkReport): void {
  port?.postMessage(message);
}

/** The next buffer of the ring; sleeps until the other side has finished with it. */
function buffer(): Buffer {
  for (;;) {
    const done = Atomics.load(freedCount, 0);
    // Both count for ever and wrap around.
    if (((used - done) | 0) < RING_SLOTS) break;
    Atomics.wait(freedCount, 0, done);
  }
  return Buffer.from(ring, (used % RING_SLOTS) * WALK_BUFFER_BYTES, WALK_BUFFER_BYTES);
}

const sink: WalkSink = {
  buffer,
  data: (_, length) => {
    report({ kind: 'data', slot: used % RING_SLOTS, length });
    used += 1;
  },
  cut: (cut) => report({ kind: 'cut', cut }),
  amend: (blobOffset, blobLength) => report({ kind: 'amend', blobOffset, blobLength }),
};

const walker = new AnyWalker(sink, blobSize);

port.on('message', (order: WalkOrder) => {
  if (isRefused) return;
  try {
    if (order.kind === 'push') {
      walker.push(Buffer.from(input, order.slot * WALK_BUFFER_BYTES, order.length));
      report({ kind: 'pushed' });
    } else {
      walker.end();
      report({ kind: 'ended', format: walker.format ?? 'tar' });
    }
  } catch (error) {
    if (!(error instanceof LayerError)) throw error;
    isRefused = true;
    report({ kind: 'refused', code: error.code, message: error.message });
  }
});
