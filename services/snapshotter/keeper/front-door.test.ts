import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { FrontDoor, type Doorkeeper } from './front-door.ts';

async function open(context: TestContext): Promise<{ readonly door: FrontDoor; readonly path: string }> {
  const folder = mkdtempSync(join(tmpdir(), 'kindling-door-'));
  const path = join(folder, 's.sock');
  const door = await FrontDoor.open(path);
  context.after(async () => {
    await door.close();
    rmSync(folder, { recursive: true });
  });
  return { door, path };
}

/** An agent that echoes, and tells of its first connection. */
function echo(): Doorkeeper & { readonly taken: Promise<Socket> } {
  const taken = Promise.withResolvers<Socket>();
  return {
    taken: taken.promise,
    take(socket) {
      taken.resolve(socket);
      socket.pipe(socket);
      socket.resume();
      return Promise.resolve(true);
    },
  };
}

async function dial(context: TestContext, path: string): Promise<Socket> {
  const socket = connect(path);
  context.after(() => socket.destroy());
  await once(socket, 'connect');
  return socket;
}

test('A client that comes while no agent serves waits for the next one, with what it has written', async (context) => {
  const { door, path } = await open(context);
  assert.equal(statSync(path).mode & 0o777, 0o600);
  const client = await dial(context, path);
  client.write('early');
  door.lead({ take: () => Promise.resolve(false) });
  door.lead(undefined);
  door.lead(echo());
  const [answer] = (await once(client, 'data')) as [Buffer];
  assert.equal(answer.toString(), 'early');
});

test('A client that was offered to an agent which then ended goes to the next one', async (context) => {
  const { door, path } = await open(context);
  const offered = Promise.withResolvers<void>();
  const ended = Promise.withResolvers<boolean>();
  door.lead({
    take: async () => {
      offered.resolve();
      return await ended.promise;
    },
  });
  const client = await dial(context, path);
  client.write('still here');
  await offered.promise;
  door.lead(echo());
  ended.resolve(false);
  const [answer] = (await once(client, 'data')) as [Buffer];
  assert.equal(answer.toString(), 'still here');
});

test('A client that comes while an agent serves is handed on', async (context) => {
  const { door, path } = await open(context);
  const agent = echo();
  door.lead(agent);
  const client = await dial(context, path);
  await agent.taken;
  client.write('late');
  const [answer] = (await once(client, 'data')) as [Buffer];
  assert.equal(answer.toString(), 'late');
});

test('The socket takes the place of one that is there, and the earlier holder does not remove it', async (context) => {
  const { door, path } = await open(context);
  const second = await FrontDoor.open(path);
  await door.close();
  assert.ok(existsSync(path));
  await dial(context, path);
  await second.close();
  assert.ok(!existsSync(path));
});
