/**
 * `node index-child.ts FILE DIGEST`: indexes a blob as it would be streamed and prints what that took as JSON. A process of its own, so that
 * its peak of memory is its own.
 */
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { parseDigest } from '#shared/digest/digest.ts';
import { buildLayerIndex } from '#shared/formats/build-index.ts';
import { encodeLayerIndex } from '#shared/layer/index-codec.ts';

/** What the child prints. Times in milliseconds. */
export interface IndexRun {
  readonly millis: number;
  readonly cpuMillis: number;
  readonly peakBytes: number;
  readonly format: string;
  readonly diffId: string;
  readonly entries: number;
  readonly spans: number;
  readonly decodedBytes: number;
  readonly indexBytes: number;
}

const [, , file = '', digest = ''] = process.argv;
if (file !== '') {
  const { size } = await stat(file);
  const started = performance.now();
  const index = await buildLayerIndex(
    {
      range: () => Promise.reject(new Error('this blob is streamed')),
      stream: () => createReadStream(file, { highWaterMark: 64 * 1024 }),
    },
    { digest: parseDigest(digest, 'the second argument'), size },
    { toc: 'never' },
    AbortSignal.timeout(3_600_000),
  );
  const bytes = encodeLayerIndex(index);
  const { user, system } = process.cpuUsage();
  const run: IndexRun = {
    millis: performance.now() - started,
    cpuMillis: (user + system) / 1000,
    peakBytes: process.resourceUsage().maxRSS * 1024,
    format: index.format,
    diffId: index.diffId ?? '',
    entries: index.entries.length,
    spans: index.spans.length,
    decodedBytes: index.spans.reduce((sum, span) => sum + span.streamLength, 0),
    indexBytes: bytes.length,
  };
  console.log(JSON.stringify(run));
}
