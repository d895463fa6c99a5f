import { createReadStream } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { Readable } from 'node:stream';
import type { OciLayout } from '#test/images/oci-layout.ts';
import { MANIFEST_TYPE } from '#test/images/oci-layout.ts';
import { ServerProcess, freePort, isListening } from './server-process.ts';

export interface RegistryOptions {
  /** Where it keeps its data and its configuration. */
  readonly folder: string;
  /** Of notifications' receivers. */
  readonly notify?: readonly { readonly url: string; readonly token?: string }[];
  readonly port?: number;
  /** Lines of an htpasswd file (bcrypt): without it everybody may do everything. */
  readonly htpasswd?: string;
}

/** The real `docker-registry` on a free port of 127.0.0.1, plain HTTP. */
export class TestRegistry implements AsyncDisposable {
  readonly port: number;
  readonly #options: RegistryOptions;
  #server: ServerProcess;

  private constructor(options: RegistryOptions, port: number, server: ServerProcess) {
    this.#options = options;
    this.port = port;
    this.#server = server;
  }

  static async start(options: RegistryOptions, signal: AbortSignal): Promise<TestRegistry> {
    const port = options.port ?? (await freePort());
    return new TestRegistry(options, port, await startRegistry(options, port, signal));
  }

  /** `127.0.0.1:port`. */
  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  get log(): string {
    return this.#server.log;
  }

  reference(name: string, tag = 'latest'): string {
    return `${this.host}/${name}:${tag}`;
  }

  /** Ends the server; `restart` brings it back on the same port with the same data. */
  async stop(): Promise<void> {
    await this.#server[Symbol.asyncDispose]();
  }

  async restart(signal: AbortSignal): Promise<void> {
    await this.stop();
    this.#server = await startRegistry(this.#options, this.port, signal);
  }

  /** Pushes a layout byte for byte (tools such as skopeo would compress layers anew) and returns the reference. */
  async push(layout: OciLayout, name: string, tag: string, signal: AbortSignal): Promise<string> {
    const { bytes, manifest } = await layout.manifest();
    const base = `http://${this.host}/v2/${name}`;
    for (const blob of [manifest.config, ...manifest.layers]) {
      const head = await fetch(`${base}/blobs/${blob.digest}`, { method: 'HEAD', signal });
      if (head.ok) continue;
      const begun = await fetch(`${base}/blobs/uploads/`, { method: 'POST', signal });
      const location = new URL(begun.headers.get('location') ?? '', base);
      await begun.body?.cancel();
      location.searchParams.set('digest', blob.digest);
      await expectOk(
        await fetch(location, {
          method: 'PUT',
          headers: { 'content-type': 'application/octet-stream', 'content-length': String(blob.size) },
          body: Readable.toWeb(createReadStream(layout.blobPath(blob.digest))),
          duplex: 'half',
          signal,
        }),
        `upload ${blob.digest}`,
      );
    }
    await expectOk(
      await fetch(`${base}/manifests/${tag}`, {
        method: 'PUT',
        headers: { 'content-type': MANIFEST_TYPE },
        body: new Uint8Array(bytes),
        signal,
      }),
      `put the manifest of ${name}:${tag}`,
    );
    return this.reference(name, tag);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

async function startRegistry(options: RegistryOptions, port: number, signal: AbortSignal): Promise<ServerProcess> {
  const config = {
    version: '0.1',
    log: { level: 'warn', accesslog: { disabled: false } },
    storage: { filesystem: { rootdirectory: `${options.folder}/data` }, delete: { enabled: true } },
    http: { addr: `127.0.0.1:${port}` },
    ...(options.htpasswd === undefined
      ? {}
      : { auth: { htpasswd: { realm: 'test', path: `${options.folder}/htpasswd` } } }),
    ...(options.notify === undefined
      ? {}
      : {
          notifications: {
            endpoints: options.notify.map(({ url, token }, i) => ({
              name: `receiver-${i}`,
              url,
              timeout: '5s',
              threshold: 3,
              backoff: '1s',
              ...(token === undefined ? {} : { headers: { Authorization: [`Bearer ${token}`] } }),
            })),
          },
        }),
  };
  if (options.htpasswd !== undefined) await writeFile(`${options.folder}/htpasswd`, options.htpasswd);
  const file = `${options.folder}/registry.yml`;
  await writeFile(file, JSON.stringify(config)); // JSON is YAML
  const env: NodeJS.ProcessEnv = { ...process.env, OTEL_TRACES_EXPORTER: 'none' };
  for (const name of Object.keys(env)) if (name.startsWith('REGISTRY_')) delete env[name];
  return await ServerProcess.start(
    {
      name: 'docker-registry',
      program: 'docker-registry',
      args: ['serve', file],
      env,
      ready: async () => await isListening({ port }),
      stopTimeoutMs: 3_000,
    },
    signal,
  );
}

async function expectOk(response: Response, what: string): Promise<void> {
  const text = await response.text();
  if (!response.ok) throw new Error(`Cannot ${what}: the registry answered ${response.status} ${text.slice(0, 300)}`);
}
