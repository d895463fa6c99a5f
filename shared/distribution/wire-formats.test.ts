import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { sha256 } from '#shared/digest/digest.ts';
import {
  CapabilityError,
  issueCapability,
  issueReporter,
  publicKeyFromText,
  textOfPublicKey,
  verifyCapability,
  verifyReporter,
} from './capability.ts';
import { decodeMessage, DISTRIBUTION_VERSION, joinRequest, MessageError, updateMessage } from './messages.ts';
import { residencyBeat, residencyChanges, residencyHead, ResidencyReader } from './residency-frames.ts';
import { formatSpanRuns, FrameError, frameHeader, FrameReader, parseSpanRuns } from './span-frames.ts';
import { SpanSet } from './span-set.ts';

const RUNS = { numRuns: 60 };
const layer = sha256(Buffer.from('layer'));
const record = { node: 'n1', host: '10.0.0.1', port: 7000, zone: '', tls: false };

function cut(bytes: Buffer, at: readonly number[]): Buffer[] {
  const ends = [...new Set(at.map((one) => one % (bytes.length + 1))), bytes.length].sort((a, b) => a - b);
  return ends.map((end, i) => bytes.subarray(ends[i - 1] ?? 0, end));
}

test('span frames are read the same wherever the stream is cut', () => {
  const LENGTH = 40;
  const whole = fc.uint8Array({ minLength: LENGTH, maxLength: LENGTH }).map((bytes) => ({ form: 'payload', bytes }));
  const packed = fc.uint8Array({ maxLength: LENGTH - 1 }).map((bytes) => ({ form: 'packed', bytes }));
  const frames = fc.array(fc.oneof(whole, packed, fc.constant({ form: 'absent', bytes: undefined })), { maxLength: 6 });
  fc.assert(
    fc.property(frames, fc.array(fc.nat(), { maxLength: 8 }), (sent, cuts) => {
      const bytes = Buffer.concat(
        sent.flatMap((frame, span) => [
          frameHeader(span, frame.bytes?.length, frame.form === 'packed'),
          frame.bytes ?? Buffer.alloc(0),
        ]),
      );
      const reader = new FrameReader((span) => (span < sent.length ? LENGTH : undefined));
      const read = cut(bytes, cuts).flatMap((chunk) => reader.push(chunk));
      reader.end();
      assert.deepEqual(
        read.map((frame) => [frame.span, frame.form, frame.form === 'absent' ? [] : [...frame.bytes]]),
        sent.map((frame, span) => [span, frame.form, [...(frame.bytes ?? [])]]),
      );
    }),
    RUNS,
  );
});

test('a frame that was not asked for, has another length or is cut short is refused', () => {
  const reader = () => new FrameReader((span) => (span === 3 ? 5 : undefined));
  const code = (wanted: string) => (error: unknown) => error instanceof FrameError && error.code === wanted;
  assert.throws(() => reader().push(frameHeader(4, 5)), code('unexpected'));
  assert.throws(() => reader().push(frameHeader(3, 0xfffffff0)), code('too-large'));
  assert.throws(() => reader().push(frameHeader(3, 5, true)), code('too-large'));
  const half = reader();
  assert.deepEqual(half.push(frameHeader(3, 5)), []);
  assert.throws(() => half.end(), code('cut-short'));
});

test('runs of spans survive the path of a request, and a malformed or longer list is refused', () => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.nat({ max: 500 }), { minLength: 1, maxLength: 40 }), (spans) => {
      const sorted = spans.sort((a, b) => a - b);
      assert.deepEqual(parseSpanRuns(formatSpanRuns(sorted), 40), sorted);
    }),
    RUNS,
  );
  for (const text of ['', '1-', '5-3', '1,,2', '-1', '1-9999999', '1;2'])
    assert.equal(parseSpanRuns(text, 40), undefined);
});

test('a residency stream is read the same wherever it is cut', () => {
  const spans = fc.uniqueArray(fc.nat({ max: 36 }), { maxLength: 20 });
  fc.assert(
    fc.property(spans, spans, fc.array(fc.nat(), { maxLength: 6 }), (held, changed, cuts) => {
      const changes = changed.map((span, i) => ({ span, has: i % 2 === 0 }));
      const head = residencyHead(37, SpanSet.of(37, held).bytes);
      const bytes = Buffer.concat([head, residencyBeat(), residencyChanges(changes)]);
      const reader = new ResidencyReader(37);
      const read = cut(bytes, cuts).flatMap((chunk) => reader.push(chunk));
      const first = held.toSorted((a, b) => a - b).map((span) => ({ span, has: true }));
      assert.deepEqual(read, [...first, ...changes]);
    }),
    RUNS,
  );
  assert.throws(() => new ResidencyReader(36).push(residencyHead(37, new Uint8Array(5))));
});

test('a capability is good for its layer until it ends, and for nobody who changes a byte of it', () => {
  const keys = generateKeyPairSync('ed25519');
  const text = issueCapability({ layer, record, expiresMs: 1_000_000 }, keys.privateKey);
  const key = publicKeyFromText(textOfPublicKey(keys.privateKey));
  assert.deepEqual(verifyCapability(text, layer, key, 0).record, record);
  const refused = (code: CapabilityError['code'], run: () => unknown) =>
    assert.throws(run, (error) => error instanceof CapabilityError && error.code === code);
  refused('expired', () => verifyCapability(text, layer, key, 2_000_000));
  refused('other-layer', () => verifyCapability(text, sha256(Buffer.from('other')), key, 0));
  refused('forged', () => verifyCapability(`A${text.slice(1)}`, layer, key, 0));
  refused('forged', () => verifyCapability(text, layer, generateKeyPairSync('ed25519').publicKey, 0));
  refused('malformed', () => verifyCapability(`${text}.x`, layer, key, 0));
});

test('the right to report is none to get spans with, nor the other way round', () => {
  const keys = generateKeyPairSync('ed25519');
  const key = publicKeyFromText(textOfPublicKey(keys.privateKey));
  const right = { layer, record, expiresMs: 1_000_000 };
  const reporter = issueReporter(right, keys.privateKey);
  assert.deepEqual(verifyReporter(reporter, layer, key, 0).record, record);
  assert.throws(() => verifyCapability(reporter, layer, key, 0), CapabilityError);
  assert.throws(() => verifyReporter(issueCapability(right, keys.privateKey), layer, key, 0), CapabilityError);
});

test('messages of another version, with unknown fields or out of bounds are refused', () => {
  const join = { version: DISTRIBUTION_VERSION, record, layer, spanCount: 8, have: '', repository: 'host/app' };
  const decode = (message: object) => decodeMessage(joinRequest, Buffer.from(JSON.stringify(message)), 'a join');
  assert.equal(decode(join).spanCount, 8);
  for (const wrong of [
    { version: DISTRIBUTION_VERSION + 1 },
    { spanCount: 2 ** 30 },
    { layer: 'sha256:nothing' },
    { more: true },
    { record: { ...record, host: 'a b' } },
  ]) {
    assert.throws(() => decode({ ...join, ...wrong }), MessageError);
  }
  assert.throws(() => decodeMessage(updateMessage, Buffer.from('{'), 'an update'), MessageError);
});

test('a set of spans gives back what was put in', () => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.nat({ max: 99 })), (spans) => {
      const set = SpanSet.fromText(100, SpanSet.of(100, spans).text);
      assert.deepEqual(
        [...set.spans()],
        spans.toSorted((a, b) => a - b),
      );
      for (const span of spans) set.delete(span);
      assert.deepEqual([...set.spans()], []);
    }),
    RUNS,
  );
});
