import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { SettingsError } from '#shared/config/settings.ts';
import { EMBEDDED, takesEvents } from './embedded-services.ts';

const TOKEN = 'a-token-of-the-platform';

describe('a node that works alone', () => {
  it('takes events by itself once the gateway is configured', () => {
    assert.equal(takesEvents({}), false);
    assert.equal(takesEvents({ KINDLING_GATEWAY_TOKENS: '' }), false);
    assert.equal(takesEvents({ KINDLING_GATEWAY_TOKENS: TOKEN }), true);
    assert.equal(takesEvents({ NATS_URL: 'nats://127.0.0.1' }), false);
  });

  it('refuses to do so in a cluster, where another process does', () => {
    const env = { KINDLING_GATEWAY_TOKENS: TOKEN, NATS_URL: 'nats://127.0.0.1' };
    assert.throws(() => takesEvents(env), SettingsError);
  });

  it('knows the settings of all three services, and names what is wrong', () => {
    const env = { KINDLING_GATEWAY_TOKENS: TOKEN, KINDLING_INDEXER_BUILDS: '1', KINDLING_DATA_DIR: '/data' };
    assert.ok(EMBEDDED.configure(env, '/data'));
    // Gateway and indexer each have a setting of this name.
    const registries = { KINDLING_INDEXER_REGISTRIES: 'a.example', KINDLING_GATEWAY_REGISTRIES: 'b.example' };
    assert.ok(EMBEDDED.configure({ ...env, ...registries }, '/data'));
    assert.throws(() => EMBEDDED.configure({ KINDLING_GATEWAY_REGISTRIES: '*' }, '/data'), /at least one token/);
    assert.throws(
      () => EMBEDDED.configure({ ...env, KINDLING_GATEWAY_TOKEN: TOKEN }, '/data'),
      /KINDLING_GATEWAY_TOKENS\?/,
    );
  });
});
