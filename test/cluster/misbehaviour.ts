import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Digest } from '#shared/digest/digest.ts';
import type { SharingNode } from './sharing-node.ts';

/** What a bad peer does to those that ask it. */
export type Misbehaviour = 'flips' | 'truncates' | 'breaks' | 'stalls' | 'lies';

/** Lets the node misbehave with a layer that it holds; for good. */
export function misbehave(node: SharingNode, layer: Digest, how: Misbehaviour): void {
  if (how === 'flips') flipBits(node, layer);
  else if (how === 'stalls') replacePayload(node, layer, () => new Promise(() => {}));
  else if (how === 'lies') replacePayload(node, layer, () => Promise.resolve(undefined));
  else truncate(node, how === 'breaks' ? 'breaks' : 'ends');
}

/** Each span that it gives has one bit that is wrong. */
export function flipBits(node: SharingNode, layer: Digest): void {
  replacePayload(node, layer, async (honest) => {
    const payload = await honest();
    if (payload !== undefined && payload.length > 0) payload[0] = (payload[0] ?? 0) ^ 1;
    return payload;
  });
}

/** What it answers with spans stops within a span: its answer ends there, or its connection does. */
export function truncate(node: SharingNode, how: 'ends' | 'breaks'): Disposable & { readonly count: number } {
  let count = 0;
  const cut = (message: unknown): void => {
    const { request, response } = message as { readonly request: IncomingMessage; readonly response: ServerResponse };
    if (request.socket.localPort !== node.peers.server.port || request.url?.includes('/spans/') !== true) return;
    const write = response.write.bind(response);
    let over = false;
    response.write = ((bytes: Uint8Array) => {
      if (over) return true;
      over = bytes.length > 8;
      if (!over) return write(bytes);
      count++;
      write(bytes.subarray(0, bytes.length >> 1), () => {
        if (how === 'breaks') response.destroy();
      });
      if (how === 'ends') response.end();
      return true;
    }) as typeof response.write;
  };
  const channel = 'http.server.request.start';
  subscribe(channel, cut);
  return {
    get count() {
      return count;
    },
    [Symbol.dispose]: () => unsubscribe(channel, cut),
  };
}

type Payload = Promise<Buffer | undefined>;

function replacePayload(node: SharingNode, layer: Digest, give: (honest: () => Payload) => Payload): void {
  const held = node.store.layers.get(layer);
  if (held === undefined) throw new Error(`${layer} is not here`);
  const honest = held.readPayload.bind(held);
  held.readPayload = async (span) => await give(async () => await honest(span));
}
