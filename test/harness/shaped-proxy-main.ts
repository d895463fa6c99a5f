/**
 * A ShapedProxy as a process of its own, so that it does not take turns with what measures:
 * `node shaped-proxy-main.ts TARGET_PORT BYTES_PER_SECOND DELAY_MS` (0 = not limited); writes its port, then on each line `bytes`
 * that it reads the bytes that have come from the target so far; `unlimited` ends the limits.
 */
import { createInterface } from 'node:readline';
import { ShapedProxy } from './shaped-proxy.ts';

const [port = 0, bytesPerSecond = 0, delayMs = 0] = process.argv.slice(2).map(Number);
const proxy = await ShapedProxy.start(
  { host: '127.0.0.1', port },
  { ...(bytesPerSecond > 0 ? { bytesPerSecond } : {}), delayMs },
);
console.log(proxy.port);
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'bytes') console.log(proxy.bytesDown);
  if (line === 'unlimited') proxy.shape = {};
}
await proxy[Symbol.asyncDispose]();
