import { readFile } from 'node:fs/promises';
import { networkInterfaces } from 'node:os';
import { z } from 'zod';
import {
  address,
  bytes,
  flag,
  optionalText,
  SettingsError,
  type Settings,
  type Values,
} from '#shared/config/settings.ts';
import type { PeerTls } from './peer-client.ts';

/** How a node shares layers with others; without NATS_URL none of it is used. */
export const peerSettings = {
  peers: {
    env: 'KINDLING_PEERS',
    schema: flag,
    default: 'true',
    help: 'Share layers with the other nodes of the cluster; needs NATS_URL and a distributor',
  },
  peerListen: {
    env: 'KINDLING_PEER_LISTEN',
    schema: address('0.0.0.0'),
    default: '0.0.0.0:8461',
    help: 'host:port where other nodes get spans',
  },
  peerAddress: {
    env: 'KINDLING_PEER_ADDRESS',
    schema: optionalText,
    help: 'Address without port under which other nodes reach this one; default: that of the first network interface',
  },
  peerUploadRate: {
    env: 'KINDLING_PEER_UPLOAD_RATE',
    schema: bytes,
    default: '0',
    unit: 'bytes/s',
    help: 'What other nodes get from this one at most; 0 = no limit',
  },
  peerPacking: {
    env: 'KINDLING_PEER_PACKING',
    schema: z.enum(['auto', 'always', 'never']),
    default: 'auto',
    help: 'Whether contents travel packed between nodes, which takes less of links and more of processors: always, never, or auto = as they come sooner',
  },
  zone: {
    env: 'KINDLING_ZONE',
    schema: z.string().max(64),
    default: '',
    help: 'Where the node stands: nodes of one zone share among themselves first',
  },
  peerTlsCa: {
    env: 'KINDLING_PEER_TLS_CA',
    schema: optionalText,
    help: 'PEM file of the CA of all nodes: with it, and the next two, nodes speak mutual TLS',
  },
  peerTlsCert: {
    env: 'KINDLING_PEER_TLS_CERT',
    schema: optionalText,
    help: "PEM file of this node's certificate, for its address, as server and as client",
  },
  peerTlsKey: { env: 'KINDLING_PEER_TLS_KEY', schema: optionalText, help: 'PEM file of its key' },
} as const satisfies Settings;

export type PeerValues = Values<typeof peerSettings>;

/** @throws SettingsError when only some of the files are named or one cannot be read. */
export async function loadPeerTls(values: PeerValues): Promise<PeerTls | undefined> {
  const { peerTlsCa, peerTlsCert, peerTlsKey } = values;
  if (!peerTlsCa && !peerTlsCert && !peerTlsKey) return undefined;
  if (!peerTlsCa || !peerTlsCert || !peerTlsKey) {
    throw new SettingsError('Cannot start: of KINDLING_PEER_TLS_CA, _CERT and _KEY all three are needed, or none');
  }
  try {
    const [ca, cert, key] = await Promise.all(
      [peerTlsCa, peerTlsCert, peerTlsKey].map(async (path) => await readFile(path, 'utf8')),
    );
    return { ca: ca ?? '', cert: cert ?? '', key: key ?? '' };
  } catch (cause) {
    throw new SettingsError(`Cannot start: ${cause instanceof Error ? cause.message : 'a TLS file is unreadable'}`, {
      cause,
    });
  }
}

/** Where other nodes reach this one. */
export function advertisedHost(values: Pick<PeerValues, 'peerAddress' | 'peerListen'>): string {
  if (values.peerAddress) return values.peerAddress;
  const { host } = values.peerListen;
  if (host !== '0.0.0.0' && host !== '::') return host;
  const own = Object.values(networkInterfaces())
    .flat()
    .find((one) => one !== undefined && !one.internal && one.family === 'IPv4');
  return own?.address ?? '127.0.0.1';
}
