import { createHash } from 'node:crypto';
import {
  consumerOpts,
  StorageType,
  type JetStreamClient,
  type ObjectInfo,
  type ObjectStore as NatsObjectStore,
} from 'nats';
import { BUS_LIMITS, BusError, type ObjectStore } from './bus.ts';
import { within } from './deadline.ts';
import { toBusError, type Link, type NatsLink } from './nats-link.ts';
import { CHUNKS, makeRoom, OBJECT_BUCKET, removeOrphans, STREAM } from './nats-object-room.ts';
import { NatsOpened } from './nats-opened.ts';
import { checkObjectName } from './subject.ts';

const LOOK_MS = 5_000;
/** A whole object of the greatest size at some 10 MB/s. */
const MOVE_MS = 30_000;
/** No put takes so long. */
const ORPHAN_MS = 10 * 60 * 1000;
/** What names an object's parts. Whatever somebody has written there becomes part of a subject. */
const NUID = /^[A-Za-z0-9]{1,64}$/;

export class NatsObjects implements ObjectStore {
  readonly #link: NatsLink;
  /** Whether we have looked for what writers before us left half done: once, by processes that write. */
  #swept = false;
  readonly #opened = new NatsOpened((link) => this.#open(link));

  constructor(link: NatsLink) {
    this.#link = link;
  }

  async put(name: string, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    checkObjectName(name);
    await this.#with(`store the object ${name}`, MOVE_MS, signal, async (store, link) => {
      const known = await store.info(name);
      if (known && !known.deleted) return;
      if (!this.#swept) await removeOrphans(link.jsm, store, this.#link.options.orphanMs ?? ORPHAN_MS);
      this.#swept = true;
      await makeRoom(link.jsm, store, name, bytes);
      await store.putBlob({ name }, bytes, { timeout: MOVE_MS });
    });
  }

  async get(name: string, signal: AbortSignal): Promise<Uint8Array | undefined> {
    checkObjectName(name);
    const over = new AbortController();
    try {
      return await this.#with(`read the object ${name}`, MOVE_MS, signal, async (store, link) => {
        const known = await store.info(name);
        if (!known || known.deleted) return undefined;
        checkStored(name, known.size);
        return await readObject(link.js, known, over.signal);
      });
    } finally {
      // Parts that were lost are waited for no longer than by us.
      over.abort();
    }
  }

  async has(name: string, signal: AbortSignal): Promise<boolean> {
    checkObjectName(name);
    return await this.#with(`look for the object ${name}`, LOOK_MS, signal, async (store) => {
      const known = await store.info(name);
      return known !== null && !known.deleted;
    });
  }

  async remove(name: string, signal: AbortSignal): Promise<void> {
    checkObjectName(name);
    await this.#with(`remove the object ${name}`, LOOK_MS, signal, async (store) => {
      if (await store.info(name)) await store.delete(name);
    });
  }

  async #with<T>(
    what: string,
    ms: number,
    signal: AbortSignal,
    work: (store: NatsObjectStore, link: Link) => Promise<T>,
  ): Promise<T> {
    const link = await this.#link.link(what, signal);
    const ends = AbortSignal.any([signal, link.gone]);
    try {
      const store = await within(this.#opened.of(link), LOOK_MS, ends, what);
      return await within(work(store, link), ms, ends, what);
    } catch (error) {
      this.#opened.failed(error);
      if (link.gone.aborted && !signal.aborted) {
        throw new BusError('unavailable', `Cannot ${what}: the connection to NATS was lost`, { cause: error });
      }
      throw toBusError(error, what);
    }
  }

  async #open(link: Link): Promise<NatsObjectStore> {
    const { replicas = 1, objectBytes = BUS_LIMITS.allObjectBytes } = this.#link.options;
    return await link.js.views.os(OBJECT_BUCKET, {
      description: 'Kindling: layer indexes',
      storage: StorageType.File,
      replicas,
      max_bytes: objectBytes,
    });
  }
}

/**
 * Its parts, as all NATS clients store them (ADR-20), no more than the size that it claims: they are whatever somebody has written. The client
 * would do the same, but for a SHA-256 in JavaScript, which costs more than all the rest.
 */
async function readObject(
  js: JetStreamClient,
  { name, nuid, size, digest }: Pick<ObjectInfo, 'name' | 'nuid' | 'size' | 'digest'>,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const bytes = Buffer.allocUnsafe(size);
  const hash = createHash('sha256');
  let at = 0;
  if (size > 0 && NUID.test(nuid)) {
    const parts = await js.subscribe(`${CHUNKS}${nuid}`, consumerOpts().bindStream(STREAM).orderedConsumer());
    const end = () => parts.unsubscribe();
    signal.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
    try {
      for await (const { data, info } of parts) {
        if (at + data.length > size)
          throw new BusError('too-large', `Cannot read the object ${name}: it is larger than it claims`);
        bytes.set(data, at);
        hash.update(data);
        at += data.length;
        if (info.pending === 0) break;
      }
    } finally {
      signal.removeEventListener('abort', end);
      end();
    }
  }
  if (at < size) throw new BusError('unavailable', `Cannot read the object ${name}: parts of it are missing`);
  if (digest.replaceAll('=', '') === `SHA-256${hash.digest('base64url')}`) return bytes;
  throw new BusError('unavailable', `Cannot read the object ${name}: its bytes are not those that were stored`);
}

function checkStored(name: string, size: number): void {
  // What others wrote is not trusted to be small.
  if (Number.isSafeInteger(size) && size >= 0 && size <= BUS_LIMITS.objectBytes) return;
  throw new BusError('too-large', `Cannot read the object ${name}: it claims ${size} bytes`);
}
