import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import { TOC_DIGEST_ANNOTATION } from '#shared/formats/toc/toc-tail.ts';
import { requireSameToc } from './layer-record.ts';

const [layer, table, other] = ['layer', 'table', 'other'].map((text) => sha256(Buffer.from(text)));
assert.ok(layer && table && other);

const request = (toc?: string) => ({
  layer,
  imageReference: 'r.example/app:1',
  sizeBytes: 1,
  mediaType: undefined,
  manifest: undefined,
  annotations: toc === undefined ? {} : { [TOC_DIGEST_ANNOTATION]: toc },
});

test('a layer made by a table outside of its blob is only for images that vouch for this table', () => {
  requireSameToc({ externalToc: table }, request(table));
  requireSameToc({ externalToc: table, diffId: other }, request());
  requireSameToc({}, request(other));
  for (const toc of [other, undefined]) {
    assert.throws(() => requireSameToc({ externalToc: table }, request(toc)), {
      name: 'NotLazyError',
      code: 'refused',
    });
  }
});
