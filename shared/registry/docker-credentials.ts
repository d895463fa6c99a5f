import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import type { Credential, CredentialSource } from './credentials.ts';
import { RegistryError } from './registry-error.ts';

const HELPER_LIMITS = {
  /** A helper may ask a cloud's API; past this it hangs. */
  timeoutMs: 20_000,
  answerBytes: 256 * 1024,
} as const;

const config = z.object({
  auths: z
    .record(
      z.string(),
      z.object({
        auth: z.string().optional(),
        username: z.string().optional(),
        password: z.string().optional(),
        identitytoken: z.string().optional(),
      }),
    )
    .nullish(),
  credHelpers: z.record(z.string(), z.string()).nullish(),
  credsStore: z.string().optional(),
});
type Config = z.infer<typeof config>;

const helperAnswer = z.object({ Username: z.string(), Secret: z.string() });

/** Where Docker keeps its configuration: `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`. */
function defaultDockerConfig(env: Readonly<Record<string, string | undefined>> = process.env): string {
  return join(env['DOCKER_CONFIG'] || join(homedir(), '.docker'), 'config.json');
}

/**
 * Credentials from a Docker `config.json`: a host's helper, then the store of all hosts, then what stands in the file.
 * The file is read anew each time, so that a login counts at once; a missing file means no credentials.
 */
export class DockerCredentials implements CredentialSource {
  readonly #file: string;

  constructor(file: string = defaultDockerConfig()) {
    this.#file = file;
  }

  /** @throws RegistryError `unauthorized` when the file or a helper cannot be used. */
  async credential(host: string, signal: AbortSignal): Promise<Credential | undefined> {
    const parsed = await this.#read(host, signal);
    if (parsed === undefined) return undefined;
    const keys = keysOf(host);
    const helpers = parsed.credHelpers ?? {};
    const own = Object.keys(helpers).find((name) => keys.includes(plainKey(name)));
    const helper = own === undefined ? undefined : helpers[own];
    if (helper) return await askHelper(helper, own ?? host, host, signal);
    if (parsed.credsStore) {
      // Docker Hub's credentials are stored under its old address.
      const name = host === 'docker.io' ? 'https://index.docker.io/v1/' : host;
      const found = await askHelper(parsed.credsStore, name, host, signal);
      if (found !== undefined) return found;
    }
    for (const [name, auth] of Object.entries(parsed.auths ?? {})) {
      if (!keys.includes(plainKey(name))) continue;
      if (auth.identitytoken) return { kind: 'identity-token', identityToken: auth.identitytoken };
      const [username, ...rest] = Buffer.from(auth.auth ?? '', 'base64')
        .toString('utf8')
        .split(':');
      const password = rest.join(':').replace(/\0+$/, '');
      if (username && password) return { kind: 'password', username, password };
      if (auth.username && auth.password) return { kind: 'password', username: auth.username, password: auth.password };
    }
    return undefined;
  }

  async #read(host: string, signal: AbortSignal): Promise<Config | undefined> {
    let text: string;
    try {
      text = await readFile(this.#file, { encoding: 'utf8', signal });
    } catch (cause) {
      const code = cause instanceof Error && 'code' in cause ? String(cause.code) : '';
      if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
      throw new RegistryError('unauthorized', `Cannot read credentials for ${host}: ${this.#file}: ${code}`, {
        host,
        cause,
      });
    }
    try {
      return config.parse(JSON.parse(text));
    } catch {
      // The parser's message may quote a secret: it is left out.
      throw new RegistryError('unauthorized', `Cannot read credentials for ${host}: ${this.#file} is malformed`, {
        host,
      });
    }
  }
}

function keysOf(host: string): readonly string[] {
  return host === 'docker.io' ? ['index.docker.io', 'docker.io', 'registry-1.docker.io'] : [host];
}

/** `https://host/v1/` and `host` name the same. */
function plainKey(name: string): string {
  return name
    .replace(/^https?:\/\//, '')
    .replace(/\/(?:v[12]\/?)?$/, '')
    .toLowerCase();
}

async function askHelper(
  helper: string,
  name: string,
  host: string,
  signal: AbortSignal,
): Promise<Credential | undefined> {
  const failed = (why: string): RegistryError =>
    new RegistryError('unauthorized', `Cannot get credentials for ${host} from docker-credential-${helper}: ${why}`, {
      host,
    });
  if (!/^[\w.-]+$/.test(helper)) throw failed('that is no name of a helper');
  const child = spawn(`docker-credential-${helper}`, ['get'], {
    stdio: ['pipe', 'pipe', 'ignore'],
    signal: AbortSignal.any([signal, AbortSignal.timeout(HELPER_LIMITS.timeoutMs)]),
    killSignal: 'SIGKILL',
  });
  const parts: Buffer[] = [];
  let length = 0;
  child.stdout.on('data', (chunk: Buffer) => {
    length += chunk.length;
    if (length > HELPER_LIMITS.answerBytes) child.kill('SIGKILL');
    else parts.push(chunk);
  });
  child.stdin.on('error', () => {});
  child.stdin.end(`${name}\n`);
  const status = await new Promise<number | null>((resolve, reject) => {
    child.once('error', (cause) => reject(failed(cause.message)));
    child.once('close', resolve);
  });
  const text = Buffer.concat(parts).toString('utf8');
  if (status !== 0) {
    if (/credentials not found/i.test(text)) return undefined;
    throw failed(`it ended with status ${String(status)}`);
  }
  const parsed = helperAnswer.safeParse(jsonOf(text));
  if (!parsed.success) throw failed('its answer is malformed');
  const { Username: username, Secret: secret } = parsed.data;
  if (username === '<token>') return { kind: 'identity-token', identityToken: secret };
  return username === '' && secret === '' ? undefined : { kind: 'password', username, password: secret };
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
