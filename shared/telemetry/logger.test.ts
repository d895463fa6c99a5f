import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, it } from 'node:test';

/** What a process that runs `body`, with a logger at level trace, writes to its log. */
function logOf(body: string): string {
  const file = JSON.stringify(new URL('logger.ts', import.meta.url).href);
  const script = `import { createLogger } from ${file}; const logger = createLogger('test', 'trace'); ${body}`;
  const args = ['--disable-warning=ExperimentalWarning', '--input-type=module', '--eval', script];
  const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  return stderr;
}

describe('the log', () => {
  it('holds no secret: neither in headers and tokens, nor in the command that an error of Redis carries', () => {
    const log = logOf(`
      const error = Object.assign(new Error('WRONGPASS'), { command: { name: 'auth', args: ['hunter2'] }, code: 'E1' });
      logger.debug({ err: error, headers: { authorization: 'Bearer hunter2' }, answer: { token: 'hunter2' } }, 'one');
      logger.debug({ err: 'a text' }, 'two');
    `);
    const [one, two] = log
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    assert.doesNotMatch(log, /hunter2/);
    assert.partialDeepStrictEqual(one, { err: { code: 'E1' }, msg: 'one' });
    assert.equal(two?.['err'], 'a text');
  });
});
