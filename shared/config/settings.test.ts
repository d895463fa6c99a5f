import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { address, bytes, loadSettings, optionalAddress, redacted, SettingsError } from './settings.ts';

const SETTINGS = {
  listen: { env: 'KINDLING_LISTEN', schema: address('127.0.0.1'), default: ':8460', help: 'Where' },
  metrics: { env: 'KINDLING_METRICS', schema: optionalAddress('127.0.0.1'), help: 'Where' },
  quota: { env: 'KINDLING_QUOTA', schema: bytes, default: '0', help: 'How much', secret: true },
} as const;

function problemOf(env: Record<string, string>): string {
  try {
    loadSettings(SETTINGS, env);
  } catch (error) {
    assert.ok(error instanceof SettingsError);
    return error.message;
  }
  throw new Error('nothing was refused');
}

describe('settings', () => {
  it('are read from the environment, with defaults for what is empty', () => {
    const values = loadSettings(SETTINGS, {
      KINDLING_QUOTA: '1.5 MiB',
      KINDLING_METRICS: '[::1]:9',
      KINDLING_LISTEN: '',
    });
    assert.deepEqual(values, {
      listen: { host: '127.0.0.1', port: 8460 },
      metrics: { host: '::1', port: 9 },
      quota: 1024 * 1536,
    });
  });

  it('say which variable is wrong, without its value where that is secret', () => {
    const problem = problemOf({ KINDLING_QUOTA: 'hunter2', KINDLING_LISTEN: 'nowhere' });
    assert.match(problem, /KINDLING_QUOTA=\(secret\)/);
    assert.match(problem, /KINDLING_LISTEN="nowhere"/);
    assert.doesNotMatch(problem, /hunter2/);
    assert.equal(redacted(SETTINGS, loadSettings(SETTINGS, {}))['KINDLING_QUOTA'], '(set)');
  });

  it('refuse a port that there cannot be', () => {
    for (const text of [':65536', '0.0.0.0:99999', '[::]:70000']) {
      assert.match(problemOf({ KINDLING_METRICS: text }), /65535/);
    }
  });

  it('refuse a variable that nobody knows, and name the one that was meant only where that is likely', () => {
    assert.match(problemOf({ KINDLING_QOUTA: '1' }), /KINDLING_QOUTA .*did you mean KINDLING_QUOTA\?/);
    assert.doesNotMatch(problemOf({ KINDLING_SOMETHING_ELSE: '1' }), /did you mean/);
  });
});
