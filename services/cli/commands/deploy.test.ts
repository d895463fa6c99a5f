import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NatsBus } from '#shared/bus/nats-bus.ts';
import { NatsProcess } from '#shared/bus/nats-process.ts';
import { fromBus, subjectOf } from '#shared/events/image-events.ts';
import { encodeIndexingFailure, INDEXING_FAILED } from '#shared/events/indexing-failure.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { exitCodeOf } from '../exit-code.ts';
import { createProgram } from '../program.ts';

test('deploy --wait ends at once, with the reason, when the image cannot be indexed', {
  skip: NatsProcess.missing(),
}, async () => {
  await using server = await NatsProcess.start();
  await using bus = new NatsBus({ url: server.url, clientName: 'indexer', logger: silentLogger });
  const options = {
    name: 'indexer',
    subject: subjectOf('function.deployed'),
    concurrency: 1,
    maxAttempts: 1,
    inactiveMs: 60_000,
    ackWaitMs: 60_000,
    retryMs: 1,
    start: 'all',
  } as const;
  await using _indexer = bus.events.consume(options, async ({ payload }) => {
    const { source, id } = fromBus('function.deployed', payload);
    const tell = (code: string, passing: boolean, about = id) =>
      bus.messages.send(
        INDEXING_FAILED,
        encodeIndexingFailure({ source, id: about, code, reason: `because: ${code}`, passing }),
      );
    tell('not-found', false, 'of another event');
    tell('unreachable', true);
    tell('not-found', false);
  });
  const args = ['deploy', 'r.example/none:v1', '--wait', '--nats', server.url];
  const program = await createProgram(args);
  const error = await program.parseAsync(args, { from: 'user' }).then(
    () => undefined,
    (cause: unknown) => cause,
  );
  assert.ok(error instanceof Error);
  assert.equal(error.message, 'r.example/none:v1 is announced, but cannot be indexed: because: not-found');
  assert.equal(exitCodeOf(error), 4);
});
