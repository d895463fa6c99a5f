import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { NatsBus } from '#shared/bus/nats-bus.ts';
import { NatsProcess } from '#shared/bus/nats-process.ts';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import type { DeadLetterView } from '#shared/events/dead-letter.ts';
import { fromBus, subjectOf, toBus, type ImageIndexed } from '#shared/events/image-events.ts';
import { zstdBomb } from '#shared/formats/zstd/fake-bomb.ts';
import { fakeMember, fakeTar } from '#shared/layer/fake-layer.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { TestNats } from '#test/harness/nats.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { startService } from '#test/harness/service-process.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage, tinyProgram } from '#test/harness/tiny-image.ts';
import { until } from '#test/harness/until.ts';
import { writeOciLayout, type LayerFile, type OciLayout } from '#test/images/oci-layout.ts';
import { runTool } from '#test/images/tool.ts';

const MAIN = fileURLToPath(new URL('../../services/cli/main.ts', import.meta.url));
const GZIP = 'application/vnd.oci.image.layer.v1.tar+gzip';
const ZSTD = 'application/vnd.oci.image.layer.v1.tar+zstd';
/** Of the indexer's process, whatever it is given. */
const MOST_MEMORY_BYTES = 400 * 1024 * 1024;

interface BadLayer {
  readonly mediaType: string;
  readonly blob: Buffer;
  readonly diffId: Digest;
  /** Of what the indexer tells; undefined = the event ends among the dead letters. */
  readonly reason: RegExp | undefined;
}

const plain = fakeTar([fakeMember('file', 'file', 'x'.repeat(100_000))]);
const lying = fakeTar([fakeMember('file', 'file', 'x'.repeat(100_000))]).subarray(0, 40_960);
const loop = fakeTar([
  fakeMember('a', 'symlink', '', { linkName: 'b' }),
  fakeMember('b', 'symlink', '', { linkName: 'a' }),
  fakeMember('a/file', 'file', 'nowhere'),
]);
const BAD: Readonly<Record<string, BadLayer>> = {
  'ends-early': {
    mediaType: GZIP,
    blob: gzipSync(plain).subarray(0, -30),
    diffId: sha256(plain),
    reason: /^malformed: .*gzip/,
  },
  'lies-about-sizes': { mediaType: GZIP, blob: gzipSync(lying), diffId: sha256(lying), reason: /^malformed: .*end/ },
  'loop-of-names': { mediaType: GZIP, blob: gzipSync(loop), diffId: sha256(loop), reason: /^(malformed|escapes): / },
  'another-tar': { mediaType: GZIP, blob: gzipSync(plain), diffId: sha256(loop), reason: undefined },
};
/** Only for the indexer: containerd itself would unpack all of it. */
const BOMB: BadLayer = {
  mediaType: ZSTD,
  blob: zstdBomb(5 * 1024 ** 3),
  diffId: sha256(Buffer.from('never seen')),
  reason: /^too-large: .*decodes to more than/,
};

async function badImage(folder: TempFolder, name: string, layer: BadLayer): Promise<OciLayout> {
  const { mediaType, blob, diffId } = layer;
  const path = folder.join(`${name}.blob`);
  await mkdir(folder.path, { recursive: true });
  await writeFile(path, blob);
  const file: LayerFile = { path, mediaType, digest: sha256(blob), size: blob.length, diffId, createdBy: name };
  return await writeOciLayout(folder.join(name), [file], { command: ['/none'] });
}

async function goodImage(folder: TempFolder, signal: AbortSignal): Promise<OciLayout> {
  const layers = [{ 'usr/share/data': 'y'.repeat(300_000) }, { 'bin/hello': tinyProgram('hello\n', 0) }];
  return await tinyImage(folder.join('good'), layers, ['/bin/hello'], signal);
}

test('the indexer refuses bad images with a reason, keeps inside its memory and goes on; what failed can be put back', {
  skip: NatsProcess.missing(),
}, async ({ signal }) => {
  await using folder = await TempFolder.create('b');
  await using nats = await TestNats.start(folder.join('nats'), signal);
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await using bus = new NatsBus({ url: nats.url, clientName: 'test', logger: silentLogger });
  const settings = { NATS_URL: nats.url, KINDLING_INDEXER_ATTEMPTS: '2', KINDLING_INDEXER_BUILDS: '2' };
  await using indexer = await startService('indexer', settings, undefined, signal);
  const indexed = new Map<string, ImageIndexed>();
  const options = {
    name: 'test',
    subject: subjectOf('image.indexed'),
    concurrency: 1,
    maxAttempts: 1,
    inactiveMs: 600_000,
    ackWaitMs: 60_000,
    retryMs: 100,
    start: 'all',
  } as const;
  await using _told = bus.events.consume(options, async ({ payload }) => {
    const { data } = fromBus('image.indexed', payload);
    indexed.set(data.image, data);
  });
  const announce = async (image: string): Promise<void> => {
    const event = { type: 'image.pushed', id: image, source: 'test', data: { image } } as const;
    await bus.events.publish(toBus(event, new Date()), signal);
  };
  const dead = async (...args: readonly string[]): Promise<string> =>
    await runTool(
      process.execPath,
      ['--disable-warning=ExperimentalWarning', MAIN, 'events', 'dead', '--nats', nats.url, '--json', ...args],
      signal,
    );
  const letters = async (): Promise<DeadLetterView[]> => JSON.parse(await dead()) as DeadLetterView[];

  for (const [name, layer] of Object.entries(BAD)) {
    await announce(await registry.push(await badImage(folder, name, layer), name, 'v1', signal));
  }
  const missing = registry.reference('good', 'v1');
  await announce(missing);
  const refused = Object.entries(BAD).filter(([, { reason }]) => reason !== undefined);
  await until(
    async () => indexed.size === refused.length && (await letters()).length === 2,
    signal,
    () => indexer.log,
  );
  const isRefused = (name: string, { reason }: BadLayer): void => {
    const [told] = indexed.get(registry.reference(name, 'v1'))?.layers ?? [];
    assert.equal(told?.state, 'not-lazy', name);
    assert.match(told?.reason ?? '', reason ?? /none/, name);
  };
  for (const [name, layer] of refused) isRefused(name, layer);
  const both = await letters();
  assert.deepEqual(both.map(({ image }) => image).sort(), [registry.reference('another-tar', 'v1'), missing].sort());
  assert.deepEqual(new Set(both.map(({ attempts, type }) => `${attempts} ${type}`)), new Set(['2 image.pushed']));
  assert.match(both.find(({ image }) => image !== missing)?.reason ?? '', /its tar has the digest/);

  // By itself: a busy machine is busy with it for a while.
  const bomb = await registry.push(await badImage(folder, 'bomb', BOMB), 'bomb', 'v1', signal);
  await announce(bomb);
  await until(
    async () => indexed.has(bomb),
    signal,
    () => indexer.log,
  );
  isRefused('bomb', BOMB);

  // The image comes late: the event is put back by hand.
  await registry.push(await goodImage(folder, signal), 'good', 'v1', signal);
  const late = both.find(({ image }) => image === missing);
  await dead('--retry', late?.id ?? '', '--drop', both.find(({ image }) => image !== missing)?.id ?? '');
  await until(
    async () => indexed.has(missing),
    signal,
    () => indexer.log,
  );
  assert.deepEqual(
    indexed.get(missing)?.layers.map(({ state }) => state),
    ['indexed', 'indexed'],
  );
  assert.deepEqual(await letters(), []);
  const status = await readFile(`/proc/${indexer.pid}/status`, 'utf8');
  const peak = Number(/^VmHWM:\s+(\d+) kB/m.exec(status)?.[1]) * 1024;
  assert.ok(peak < MOST_MEMORY_BYTES, `the indexer took ${peak} bytes`);
});

test('an agent serves nothing of a bad image, and goes on with the next', {
  skip: process.getuid?.() === 0 ? false : 'needs root',
}, async ({ signal }) => {
  await using folder = await TempFolder.create('b');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await using node = await TestNode.start({}, signal);
  const agent = await node.kindling.agentPid();
  for (const [name, layer] of Object.entries(BAD)) {
    const reference = await registry.push(await badImage(folder, name, layer), name, 'v1', signal);
    // containerd makes something of a loop of names; from the others nothing can be made.
    const told = await node.kindling.pull(reference, signal).then(
      ({ layers }) => layers.map(({ state, reason }) => `${state}: ${reason ?? ''}`).join(),
      (error: unknown) => `failed: ${String(error)}`,
    );
    assert.match(told, name === 'loop-of-names' ? /^(full|failed): / : /^failed: /, name);
  }
  const good = await registry.push(await goodImage(folder, signal), 'good', 'v1', signal);
  const { layers } = await node.kindling.pull(good, signal);
  assert.deepEqual(
    layers.map(({ state }) => state),
    ['lazy', 'lazy'],
  );
  const run = await node.containerd.run(good, { snapshotter: 'kindling' }, signal);
  assert.equal(run.output, 'hello\n', node.kindling.log);
  assert.equal(await node.kindling.agentPid(), agent);
});
