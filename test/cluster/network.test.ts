import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { networkNamespaces, ownerOf } from '#test/harness/leaks.ts';
import { Network } from './network.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const MODULE = new URL('./network.ts', import.meta.url).href;
/** Makes hosts for ever and writes a line after each. */
const MAKES_HOSTS = `
  import { Network } from '${MODULE}';
  const { signal } = new AbortController();
  await using network = await Network.create(signal);
  for (;;) {
    const { namespace } = await network.host({}, signal);
    console.log(namespace);
  }`;

/** Ends a process that makes hosts once it has made two. */
async function endInTheMiddle(by: NodeJS.Signals, signal: AbortSignal): Promise<number> {
  const args = ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', MAKES_HOSTS];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'], signal });
  const exited = once(child, 'exit');
  let made = 0;
  for await (const _ of createInterface({ input: child.stdout })) if (++made === 2) child.kill(by);
  await exited;
  return child.pid ?? 0;
}

async function namespacesOf(pid: number): Promise<string[]> {
  return [...(await networkNamespaces())].filter((name) => ownerOf(name) === pid);
}

test('a network that is interrupted while it is being made is taken away', { skip }, async ({ signal }) => {
  assert.deepEqual(await namespacesOf(await endInTheMiddle('SIGTERM', signal)), []);
});

test('what a killed process has left of its network goes when the next one is made', { skip }, async ({ signal }) => {
  const killed = await endInTheMiddle('SIGKILL', signal);
  assert.notDeepEqual(await namespacesOf(killed), []);
  await using _network = await Network.create(signal);
  assert.deepEqual(await namespacesOf(killed), []);
});
