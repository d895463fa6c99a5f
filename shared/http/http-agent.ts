import { createRequire } from 'node:module';
import type { Agent, Dispatcher, EnvHttpProxyAgent } from 'undici';

type Undici = typeof import('undici');

const load = createRequire(import.meta.url);

/**
 * undici's `Agent`, without what else its index loads (fetch, WebSocket, caches, mocks): that is two thirds of its start and some
 * 4 MiB in every agent. What the index adds to dispatchers, `request` and the like, is added here.
 */
export function newHttpAgent(options: Agent.Options): Dispatcher {
  const { prototype } = load('undici/lib/dispatcher/dispatcher.js') as Undici['Dispatcher'];
  if (!('request' in prototype)) Object.assign(prototype, load('undici/lib/api/index.js'));
  const HttpAgent = load('undici/lib/dispatcher/agent.js') as Undici['Agent'];
  return new HttpAgent(options);
}

/** The same through the proxies that the environment names. */
export function newProxyAgent(options: EnvHttpProxyAgent.Options): Dispatcher {
  const { EnvHttpProxyAgent: ProxyAgent } = load('undici') as Undici;
  return new ProxyAgent(options);
}
