import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { KeeperArgumentsError, keeperCommand, parseKeeperArguments } from './keeper-arguments.ts';

describe("the keeper's arguments", () => {
  it('are parsed as they are written', () => {
    const options = {
      mount: '/run/kindling/layers',
      data: '/var/lib/kindling',
      socket: '/run/kindling/snapshotter.sock',
      transport: 'device',
      standby: true,
      readyTimeoutMs: 500,
      maxFailures: 3,
      agent: ['--no-warnings', '/opt/agent-main.ts', '--verbose'],
    } as const;
    const command = keeperCommand(options);
    assert.deepEqual(
      parseKeeperArguments(command.slice(command.findIndex((part) => part.endsWith('keeper.ts')) + 1)),
      options,
    );
  });

  it('say what is wrong', () => {
    const wrong: readonly (readonly [readonly string[], RegExp])[] = [
      [['--', 'agent.ts'], /--mount/],
      [['--mount=rel', '--', 'agent.ts'], /absolute/],
      [['--mount=/m'], /agent is missing/],
      [['--mount=/m', '--', '--flag'], /agent is missing/],
      [['--mount=/m', '--transport=x', '--', 'a.ts'], /auto, device, native/],
      [['--mount=/m', '--max-failures=0', '--', 'a.ts'], /positive/],
      [['--mount=/m', '--what', '--', 'a.ts'], /what/],
    ];
    for (const [args, message] of wrong) {
      assert.throws(
        () => parseKeeperArguments(args),
        (error: unknown) => error instanceof KeeperArgumentsError && message.test(error.message),
      );
    }
  });
});
