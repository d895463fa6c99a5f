import { createRequire, Module } from 'node:module';
import type { Agent, Dispatcher, EnvHttpProxyAgent } from 'undici';

type Undici = typeof import('undici');

const load = createRequire(import.meta.url);

/**
 * undici's `Agent`, without what else its index loads (fetch, WebSocket, caches, mocks) and without HTTP/2: that is three quarters of its
 * start and some 8 MiB in every agent. What the index adds to dispatchers, `request` and the like, is added here.
 */
export function newHttpAgent(options: Agent.Options): Dispatcher {
  leaveOutHttp2();
  const { prototype } = load('undici/lib/dispatcher/dispatcher.js') as Undici['Dispatcher'];
  if (!('request' in prototype)) Object.assign(prototype, load('undici/lib/api/index.js'));
  const HttpAgent = load('undici/lib/dispatcher/agent.js') as Undici['Agent'];
  return new HttpAgent({ ...options, allowH2: false });
}

/** The same through the proxies that the environment names. */
export function newProxyAgent(options: EnvHttpProxyAgent.Options): Dispatcher {
  leaveOutHttp2();
  const { EnvHttpProxyAgent: ProxyAgent } = load('undici') as Undici;
  return new ProxyAgent({ ...options, allowH2: false });
}

/** The client loads its HTTP/2 half, and node:http2 with it, whether that may be used or not. */
function leaveOutHttp2(): void {
  const path = load.resolve('undici/lib/dispatcher/client-h2.js');
  if (load.cache[path] !== undefined) return;
  const nothing = new Module(path);
  nothing.loaded = true;
  load.cache[path] = nothing;
}
