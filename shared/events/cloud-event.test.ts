import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import {
  BATCH,
  checkCloudEvent,
  CloudEventError,
  EVENT_LIMITS,
  parseRequest,
  parseStructured,
  serialise,
  STRUCTURED,
} from './cloud-event.ts';

const minimal = { specversion: '1.0', id: '1', source: '/x', type: 't' } as const;
const json = (value: unknown) => Buffer.from(JSON.stringify(value));
const refused = (code: string, pattern: RegExp) => (error: unknown) => {
  assert.ok(error instanceof CloudEventError, String(error));
  assert.equal(error.code, code);
  assert.match(error.message, pattern);
  return true;
};

test('a structured event keeps its attributes, extensions and data', () => {
  const event = { ...minimal, subject: 's', time: '2026-01-02T03:04:05.6Z', traceparent: 'x', data: { a: [1, null] } };
  assert.deepEqual(parseRequest({ 'content-type': `${STRUCTURED}; charset=utf-8` }, json(event)), [event]);
  assert.deepEqual(parseStructured(serialise(checkCloudEvent(event))), event);
});

test('a binary event has its attributes in headers, percent-encoded', () => {
  const headers = {
    'content-type': 'application/json',
    'ce-specversion': '1.0',
    'ce-id': '1',
    'ce-source': '/%C3%A4%20x',
    'ce-type': '"t"',
    'ce-tenant': 'a',
  };
  assert.deepEqual(parseRequest(headers, json({ a: 1 })), [
    {
      specversion: '1.0',
      id: '1',
      source: '/ä x',
      type: 't',
      tenant: 'a',
      datacontenttype: 'application/json',
      data: { a: 1 },
    },
  ]);
});

test('binary data that is not JSON is kept as base64', () => {
  const headers = {
    'content-type': 'text/plain',
    'ce-specversion': '1.0',
    'ce-id': '1',
    'ce-source': 's',
    'ce-type': 't',
  };
  const [event] = parseRequest(headers, Buffer.from('hi'));
  assert.equal(event?.data_base64, 'aGk=');
});

test('a batch is read whole or not at all, and says which event is wrong', () => {
  const headers = { 'content-type': BATCH };
  assert.equal(parseRequest(headers, json([minimal, { ...minimal, id: '2' }])).length, 2);
  assert.deepEqual(parseRequest(headers, json([])), []);
  assert.throws(
    () => parseRequest(headers, json([minimal, { ...minimal, id: '' }])),
    refused('malformed', /event 1 of the batch: id/),
  );
  assert.throws(() => parseRequest(headers, json(minimal)), refused('malformed', /not a JSON array/));
  const many = Array.from({ length: EVENT_LIMITS.batch + 1 }, () => minimal);
  assert.throws(() => parseRequest(headers, json(many)), refused('too-large', /batch of 257/));
  const nested = `[${'['.repeat(400_000)}${']'.repeat(400_000)}]`;
  assert.throws(() => parseRequest(headers, Buffer.from(nested)), refused('malformed', /nested too deeply/));
});

test('what is not a CloudEvent of version 1.0 within the bounds is refused', () => {
  const structured = { 'content-type': STRUCTURED };
  const wrong: readonly [unknown, RegExp][] = [
    [{ ...minimal, specversion: '0.3' }, /only CloudEvents 1.0/],
    [{ ...minimal, source: undefined }, /source/],
    [{ ...minimal, id: 'a\u0000b' }, /control characters/],
    [{ ...minimal, Bad_Name: 'x' }, /attribute names/],
    [{ ...minimal, ext: { nested: true } }, /ext/],
    [{ ...minimal, time: 'yesterday' }, /time/],
    [{ ...minimal, data: 1, data_base64: 'aGk=' }, /exclude each other/],
    [{ ...minimal, id: 'x'.repeat(2000) }, /id/],
    [[], /event/],
    [null, /event/],
  ];
  for (const [event, pattern] of wrong)
    assert.throws(() => parseRequest(structured, json(event)), refused('malformed', pattern));
  assert.throws(() => parseRequest(structured, Buffer.from([0xff, 0x7b])), refused('malformed', /not JSON in UTF-8/));
  assert.throws(
    () => parseRequest(structured, Buffer.alloc(EVENT_LIMITS.eventBytes + 1)),
    refused('too-large', /at most/),
  );
  assert.throws(
    () => parseRequest({ 'content-type': 'application/json' }, json({})),
    refused('unsupported', /ce-specversion/),
  );
  assert.throws(
    () => parseRequest({ 'content-type': 'application/cloudevents+avro' }, json({})),
    refused('unsupported', /avro/),
  );
});

test('whatever is sent, the answer is events or a CloudEventError', () => {
  const types = fc.constantFrom(STRUCTURED, BATCH, 'application/json', 'text/plain', '');
  const attribute = fc.constantFrom('ce-id', 'ce-source', 'ce-type', 'ce-specversion', 'ce-data', 'ce-x y', 'ce-');
  const body = fc.oneof(
    fc.uint8Array({ maxLength: 64 }),
    fc.json().map((text) => Buffer.from(text)),
    fc
      .record({
        specversion: fc.constant('1.0'),
        id: fc.string(),
        source: fc.string(),
        type: fc.string(),
        data: fc.jsonValue(),
      })
      .map(json),
  );
  fc.assert(
    fc.property(types, fc.dictionary(attribute, fc.string()), body, (type, headers, bytes) => {
      try {
        for (const event of parseRequest({ ...headers, 'content-type': type }, bytes)) {
          assert.deepEqual(parseStructured(serialise(event)), JSON.parse(serialise(event).toString()));
        }
      } catch (error) {
        assert.ok(error instanceof CloudEventError, String(error));
      }
    }),
    { numRuns: 500 },
  );
});
