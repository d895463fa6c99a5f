import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { it } from 'node:test';

/** EX_CONFIG */
const EXIT_CONFIG = 78;

it('a service that lacks a setting ends with a message and a status by which it is not started again', () => {
  const main = join(import.meta.dirname, 'main.ts');
  const cache = process.env['NODE_COMPILE_CACHE'] ?? '';
  const run = (settings: Readonly<Record<string, string>>) =>
    spawnSync(process.execPath, ['--disable-warning=ExperimentalWarning', main], {
      env: { NODE_COMPILE_CACHE: cache, ...settings },
      encoding: 'utf8',
    });
  const tokens = { KINDLING_GATEWAY_TOKENS: 'a-token-of-at-least-16-characters' };
  const alone = run(tokens);
  assert.equal(alone.status, EXIT_CONFIG, alone.stderr);
  assert.match(alone.stderr, /^Cannot start: the gateway .* needs NATS_URL/);
  const misspelt = run({ ...tokens, NATS_URL: 'nats://127.0.0.1:1', KINDLING_GATEWAY_TOKEN: 'short' });
  assert.equal(misspelt.status, EXIT_CONFIG, misspelt.stderr);
  assert.match(misspelt.stderr, /did you mean KINDLING_GATEWAY_TOKENS\?/);
});
