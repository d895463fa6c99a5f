import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { Dispatcher } from 'undici';
import { isLoopback } from './own-address.ts';
import { RegistryError } from './registry-error.ts';
import { parseToml, TomlError, type TomlTable, type TomlValue } from './toml-subset.ts';
import type { Transport } from './transport.ts';

export type Capability = 'pull' | 'resolve' | 'push';

/** A place that answers for a registry host: the host itself or a mirror of it. */
export interface Endpoint {
  /** `host[:port]` that is connected to; credentials are looked up by it. */
  readonly host: string;
  /** `https://host[:port][/path]/v2`, without a slash at the end. */
  readonly base: string;
  readonly capabilities: ReadonlySet<Capability>;
  readonly headers: Readonly<Record<string, string>>;
  readonly dispatcher: Dispatcher | undefined;
  /** Query that tells a mirror which registry is meant (`ns=…`); empty for the registry itself. */
  readonly query: string;
  readonly isMirror: boolean;
  /** Mirrors only: not asked before this time (ms), because it could not be reached. */
  downUntilMs: number;
}

const ALL: readonly Capability[] = ['pull', 'resolve', 'push'];
/** A mirror that could not be reached is left alone for so long. */
export const MIRROR_REST_MS = 10_000;
/** hosts.toml is read again after so long, as containerd reads it at every pull. */
const REREAD_MS = 30_000;

export interface EndpointOptions {
  readonly plainHttpHosts: readonly string[];
  readonly mirrorsDir: string | undefined;
  readonly allowHosts: readonly string[] | undefined;
}

/** Says for each registry host which endpoints to ask, mirrors first, the registry itself last. */
export class Endpoints {
  readonly #transport: Transport;
  readonly #plainHttpHosts: ReadonlySet<string>;
  readonly #mirrorsDir: string | undefined;
  readonly #allowHosts: ReadonlySet<string> | undefined;
  readonly #known = new Map<string, { readonly list: readonly Endpoint[]; readonly text: string; readAtMs: number }>();

  constructor(transport: Transport, options: EndpointOptions) {
    this.#transport = transport;
    this.#plainHttpHosts = new Set(options.plainHttpHosts);
    this.#mirrorsDir = options.mirrorsDir;
    this.#allowHosts = options.allowHosts === undefined ? undefined : new Set(options.allowHosts);
  }

  /** @throws RegistryError `refused` when the host is not allowed or its hosts.toml cannot be used. */
  async of(host: string): Promise<readonly Endpoint[]> {
    const known = this.#known.get(host);
    const nowMs = Date.now();
    if (known !== undefined && (this.#mirrorsDir === undefined || nowMs - known.readAtMs < REREAD_MS))
      return known.list;
    if (this.#allowHosts !== undefined && !this.#allowHosts.has(host)) {
      throw new RegistryError(
        'refused',
        `Refused to ask ${host}: it is not among the allowed registries (${[...this.#allowHosts].join(', ') || 'none'}). Add it there if it should be`,
        { host },
      );
    }
    const found = this.#mirrorsDir === undefined ? undefined : await readHostsToml(this.#mirrorsDir, host);
    const text = found?.text ?? '';
    if (known !== undefined && known.text === text) {
      known.readAtMs = nowMs;
      return known.list;
    }
    const list = found === undefined ? [this.#upstream(host, undefined)] : await this.#configured(host, found);
    this.#known.set(host, { list, text, readAtMs: nowMs });
    return list;
  }

  /** Whether plain HTTP may be spoken to `host` (`host[:port]`). */
  isPlain(host: string): boolean {
    return isLoopback(host) || this.#plainHttpHosts.has(host);
  }

  #upstream(host: string, server: string | undefined): Endpoint {
    const address = host === 'docker.io' ? 'registry-1.docker.io' : host;
    const url = new URL(server ?? `${this.isPlain(host) ? 'http' : 'https'}://${address}`);
    return {
      host: host === 'docker.io' && server === undefined ? host : url.host,
      base: baseOf(url, false),
      capabilities: new Set(ALL),
      headers: {},
      dispatcher: undefined,
      query: '',
      isMirror: false,
      downUntilMs: 0,
    };
  }

  async #configured(host: string, found: { file: string; text: string; folder: string }): Promise<Endpoint[]> {
    try {
      const document = parseToml(found.text);
      const server = text(document['server'], 'server');
      const upstream = this.#upstream(host, server);
      const list: Endpoint[] = [];
      for (const [name, value] of Object.entries(table(document['host'] ?? {}, 'host'))) {
        list.push(await this.#mirror(host, name, table(value, name), found.folder, upstream));
      }
      return list.some((endpoint) => !endpoint.isMirror) ? list : [...list, upstream];
    } catch (cause) {
      if (!(cause instanceof TomlError) && !(cause instanceof TypeError)) throw cause;
      throw new RegistryError('refused', `Cannot use mirrors of ${host}: ${found.file}: ${cause.message}`, {
        host,
        cause,
      });
    }
  }

  async #mirror(host: string, name: string, section: TomlTable, folder: string, upstream: Endpoint): Promise<Endpoint> {
    const url = new URL(name.includes('://') ? name : `${this.isPlain(name) ? 'http' : 'https'}://${name}`);
    const capabilities = section['capabilities'] === undefined ? ALL : texts(section['capabilities'], 'capabilities');
    const headers: Record<string, string> = {};
    for (const [key, value] of Object.entries(table(section['header'] ?? {}, 'header'))) {
      headers[key.toLowerCase()] = texts(value, key).join(', ');
    }
    const read = (file: string): Promise<Buffer> => readFile(resolve(folder, file));
    const ca = section['ca'] === undefined ? [] : await Promise.all(texts(section['ca'], 'ca').map(read));
    const pairs = section['client'] === undefined ? [] : clientPairs(section['client']);
    const pair = pairs[0];
    const client = pair === undefined ? undefined : { cert: await read(pair[0]), key: await read(pair[1] ?? pair[0]) };
    const skipVerify = section['skip_verify'] === true;
    const ownTls = ca.length > 0 || client !== undefined || skipVerify;
    const base = baseOf(url, section['override_path'] === true);
    const isMirror = base !== upstream.base;
    return {
      host: url.host,
      base,
      capabilities: new Set(ALL.filter((capability) => capabilities.includes(capability))),
      headers,
      dispatcher: ownTls
        ? this.#transport.dispatcherFor({ skipVerify, ...(ca.length > 0 ? { ca } : {}), ...(client ? { client } : {}) })
        : undefined,
      query: isMirror ? `ns=${encodeURIComponent(host)}` : '',
      isMirror,
      downUntilMs: 0,
    };
  }
}

function baseOf(url: URL, isWhole: boolean): string {
  const path = url.pathname.replace(/\/+$/, '');
  return url.origin + (isWhole || path.endsWith('/v2') ? path : `${path}/v2`);
}

/** containerd looks in the host's folder, with `host_port_` for where ":" is no good in a name, then in `_default`. */
async function readHostsToml(
  dir: string,
  host: string,
): Promise<{ file: string; text: string; folder: string } | undefined> {
  for (const name of new Set([host, host.replace(/:(\d+)$/, '_$1_'), '_default'])) {
    const folder = join(dir, name);
    const file = join(folder, 'hosts.toml');
    try {
      return { file, folder, text: await readFile(file, 'utf8') };
    } catch (cause) {
      const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
      if (code === 'ENOENT' || code === 'ENOTDIR') continue;
      throw new RegistryError('refused', `Cannot use mirrors of ${host}: ${file} is not readable (${String(code)})`, {
        host,
        cause,
      });
    }
  }
  return undefined;
}

function text(value: TomlValue | undefined, key: string): string | undefined {
  if (value === undefined || typeof value === 'string') return value || undefined;
  throw new TomlError(`${key} must be a string`);
}

function texts(value: TomlValue, key: string): string[] {
  const list: readonly TomlValue[] = Array.isArray(value) ? value : [value as TomlValue];
  return list.map((item) => {
    if (typeof item !== 'string') throw new TomlError(`${key} must be a string or a list of strings`);
    return item;
  });
}

function table(value: TomlValue, key: string): TomlTable {
  if (typeof value !== 'object' || Array.isArray(value)) throw new TomlError(`${key} must be a table`);
  return value as TomlTable;
}

/** `client = "both.pem"`, `["a.pem", …]` or `[["cert", "key"], …]`. */
function clientPairs(value: TomlValue): (readonly [string, string | undefined])[] {
  if (!Array.isArray(value)) return texts(value, 'client').map((file) => [file, undefined] as const);
  return value.map((item) => {
    const [cert, key] = texts(item as TomlValue, 'client');
    if (cert === undefined) throw new TomlError('client must name files');
    return [cert, key] as const;
  });
}
