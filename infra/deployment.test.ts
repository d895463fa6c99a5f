/** What is written down outside of the code names settings and metrics: they have to be there. */
import assert from 'node:assert/strict';
import { glob, readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { it } from 'node:test';
import { SETTINGS as distributor } from '#services/distributor/config.ts';
import { SETTINGS as gateway } from '#services/gateway/config.ts';
import { SETTINGS as indexer } from '#services/indexer/config.ts';
import { SETTINGS as snapshotter } from '#services/snapshotter/config.ts';
import { loadSettings, type Settings } from '#shared/config/settings.ts';

const ROOT = resolve(import.meta.dirname, '..');
const SERVICES: Readonly<Record<string, Settings>> = { distributor, gateway, indexer, snapshotter };
const SETTING = /\b(?:KINDLING|NATS|REDIS)_[A-Z_]+\b/g;
/** Kubernetes says it to a pod. */
const OF_KUBERNETES = 'NATS_SERVICE_HOST';
const METRIC = /\bkindling_[a-z_]+[a-z]\b/g;

async function texts(...patterns: readonly string[]): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for await (const file of glob([...patterns], { cwd: ROOT })) {
    found.set(file, await readFile(resolve(ROOT, file), 'utf8'));
  }
  assert.ok(found.size > 0);
  return found;
}

it('dashboards, alerts and README.md name metrics that a service has', async () => {
  const code = [...(await texts('services/**/*.ts')).entries()].filter(([file]) => !file.endsWith('.test.ts'));
  const metrics = new Set(code.flatMap(([, text]) => text.match(METRIC) ?? []));
  const peers = code.find(([file]) => file.endsWith('/peer-metrics.ts'))?.[1] ?? '';
  for (const [, name] of peers.matchAll(/counter\(\s*'(\w+)'/g)) metrics.add(`kindling_peer_${name}`);
  for (const [file, text] of await texts('infra/grafana/*', 'README.md')) {
    const named = (text.match(METRIC) ?? []).map((name) => name.replace(/_bucket$/, ''));
    assert.ok(named.length > 0);
    assert.deepEqual(
      named.filter((name) => !metrics.has(name)),
      [],
      file,
    );
  }
});

it('the dashboard is JSON whose panels have places and numbers of their own', async () => {
  const text = await readFile(resolve(ROOT, 'infra/grafana/kindling.json'), 'utf8');
  const { panels } = JSON.parse(text) as { panels: { id: number; gridPos: { x: number; y: number } }[] };
  assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
  assert.equal(new Set(panels.map(({ gridPos: { x, y } }) => `${x},${y}`)).size, panels.length);
});

it('units, manifests and compose files set what the service that they start knows', async () => {
  const files = await texts(
    'infra/systemd/*',
    'infra/kubernetes/*.yaml',
    'infra/compose/*.yaml',
    'infra/kubernetes/node.env',
  );
  for (const [file, text] of files) {
    // What follows the program of a service, up to the next one's, is its own; where there is none, it is an agent's.
    const [, ...own] = text.split(/\bservices\/(?=[a-z]+\/main\.ts)/);
    for (const part of own.length > 0 ? own : [`snapshotter/${text}`]) {
      const settings = SERVICES[part.split('/')[0] ?? ''];
      assert.ok(settings, `${file}: ${part.slice(0, 40)}`);
      const known = new Set([OF_KUBERNETES, ...Object.values(settings).map(({ env }) => env)]);
      assert.deepEqual(
        (part.match(SETTING) ?? []).filter((name) => !known.has(name)),
        [],
        file,
      );
    }
  }
});

it('an agent starts with the settings that the manifests give it', async () => {
  const text = await readFile(resolve(ROOT, 'infra/kubernetes/node.env'), 'utf8');
  const lines = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  const env = Object.fromEntries(lines.map((line) => line.split('=', 2) as [string, string]));
  assert.deepEqual(loadSettings(snapshotter, env).metrics, { host: '0.0.0.0', port: 9630 });
});
