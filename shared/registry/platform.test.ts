import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import { MEDIA_TYPES, parseManifest } from './manifest.ts';
import { choosePlatform, formatPlatform, parsePlatform, runsOn } from './platform.ts';

const descriptor = { mediaType: MEDIA_TYPES.ociManifest, digest: sha256(), size: 1 };
const offered = (...names: readonly string[]) =>
  names.map((name) => ({ ...descriptor, platform: parsePlatform(name) }));

test('the image that runs on a platform is chosen from an index', () => {
  const cases: readonly (readonly [wanted: string, offers: readonly string[], chosen: string | undefined])[] = [
    ['linux/amd64', ['linux/arm64', 'linux/amd64'], 'linux/amd64'],
    ['linux/arm64', ['linux/arm64/v8'], 'linux/arm64'],
    ['linux/arm/v7', ['linux/arm/v5', 'linux/arm/v6', 'linux/arm64'], 'linux/arm/v6'],
    ['linux/arm/v6', ['linux/arm/v7'], undefined],
    ['linux/amd64', ['linux/amd64/v3'], undefined],
    ['linux/amd64/v3', ['linux/amd64'], 'linux/amd64'],
    ['linux/amd64', ['windows/amd64', 'linux/s390x'], undefined],
    ['linux/x86_64', ['linux/amd64'], 'linux/amd64'],
  ];
  for (const [wanted, offers, chosen] of cases) {
    const found = choosePlatform(offered(...offers), parsePlatform(wanted));
    assert.equal(found?.platform && formatPlatform(found.platform), chosen, `${wanted} of ${offers.join()}`);
  }
  assert.throws(() => parsePlatform('linux'), RangeError);
});

test('what is for another platform does not run, whatever its names for the same one', () => {
  const runs = (have: string, wanted: string): boolean => runsOn(parsePlatform(have), parsePlatform(wanted));
  assert.equal(runs('linux/x86_64', 'linux/amd64'), true);
  assert.equal(runs('linux/arm/v6', 'linux/arm/v7'), true);
  assert.equal(runs('linux/arm64', 'linux/amd64'), false);
  assert.equal(runs('windows/amd64', 'linux/amd64'), false);
});

test('manifests that are malformed or ambiguous are refused with the field', () => {
  const parse = (document: unknown) => parseManifest(Buffer.from(JSON.stringify(document)), '', 'x');
  const config = { ...descriptor, size: 2 };
  assert.equal(parse({ schemaVersion: 2, config, layers: [descriptor] }).kind, 'image');
  assert.equal(parse({ schemaVersion: 2, manifests: [descriptor], annotations: null }).kind, 'index');
  const bad: readonly (readonly [unknown, RegExp])[] = [
    [{ schemaVersion: 2, config, layers: [], manifests: [] }, /both/],
    [{ schemaVersion: 1, fsLayers: [] }, /schema 1/],
    [{ schemaVersion: 2, config, layers: [{ ...descriptor, digest: 'sha256:../../etc' }] }, /layers\.0\.digest/],
    [{ schemaVersion: 2, config, layers: [{ ...descriptor, size: -1 }] }, /layers\.0\.size/],
    [{ schemaVersion: 2, config, layers: Array.from({ length: 600 }, () => descriptor) }, /layers/],
    [[], /object/],
    [7, /object/],
  ];
  for (const [document, message] of bad) assert.throws(() => parse(document), { name: 'ManifestError', message });
});
