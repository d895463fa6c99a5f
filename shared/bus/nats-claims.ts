import { randomUUID } from 'node:crypto';
import { StorageType, type KV } from 'nats';
import { BUS_LIMITS, BusError, type Claim, type Claims } from './bus.ts';
import { pause, within } from './deadline.ts';
import { toBusError, type Link, type NatsLink } from './nats-link.ts';
import { NatsOpened } from './nats-opened.ts';
import { checkName } from './subject.ts';

const CLAIM_BUCKET = 'KINDLING_CLAIMS';
const DEFAULT_TTL_MS = 10_000;
/** JetStream's codes for "someone wrote it since", and (replicated streams) "someone is writing it just now". */
const WRONG_LAST_SEQUENCE: readonly unknown[] = [10071, 10164];

/**
 * A claim is a key that the server itself forgets when it is not written again in time, so that no two clocks are ever
 * compared. Kept in memory: a server that restarts forgets all claims, and their holders take them anew.
 */
export class NatsClaims implements Claims {
  readonly #link: NatsLink;
  readonly #ttlMs: number;
  readonly #opened = new NatsOpened((link) => this.#open(link));

  constructor(link: NatsLink) {
    this.#link = link;
    this.#ttlMs = link.options.claimTtlMs ?? DEFAULT_TTL_MS;
  }

  async claim(name: string, signal: AbortSignal): Promise<Claim | undefined> {
    checkName(name, 'the name of a claim');
    const holder = Buffer.from(`${this.#link.options.clientName} ${randomUUID()}`);
    const what = `claim ${name}`;
    const link = await this.#link.link(what, signal);
    try {
      const revision = await this.#with(link, what, signal, (kv) => kv.create(name, holder));
      return this.#hold(name, holder, revision);
    } catch (error) {
      if (isTaken(error)) return undefined;
      throw toBusError(error, what);
    }
  }

  #hold(name: string, holder: Uint8Array, first: number): Claim {
    const lost = new AbortController();
    const stop = new AbortController();
    let revision: number | undefined = first;
    const keep = async () => {
      let renewedMs = performance.now();
      while (revision !== undefined) {
        await pause(this.#ttlMs / 3, stop.signal);
        if (stop.signal.aborted) return;
        const askedMs = performance.now();
        try {
          revision = await this.#renew(name, holder, revision);
          renewedMs = askedMs;
        } catch {
          if (performance.now() - renewedMs > this.#ttlMs) revision = undefined;
        }
      }
      lost.abort();
    };
    const keeping = keep();
    return {
      lost: lost.signal,
      [Symbol.asyncDispose]: async () => {
        stop.abort();
        // A renewal is waited for: one that comes after the claim was given back would take it again.
        await keeping;
        const last = revision;
        revision = undefined;
        const link = this.#link.current();
        if (last === undefined || link === undefined) return;
        // What cannot be given back now runs out by itself.
        await this.#with(link, `give the claim ${name} back`, this.#link.closed, (kv) =>
          kv.delete(name, { previousSeq: last }),
        ).catch(() => {});
      },
    };
  }

  /** undefined: somebody else holds it now. */
  async #renew(name: string, holder: Uint8Array, known: number): Promise<number | undefined> {
    const what = `renew the claim ${name}`;
    const link = this.#link.current();
    if (link === undefined) throw new BusError('unavailable', `Cannot ${what}: there is no connection to NATS`);
    return await this.#with(link, what, this.#link.closed, async (kv) => {
      try {
        return await kv.update(name, holder, known);
      } catch (error) {
        if (!isTaken(error)) throw error;
      }
      // The answer to an earlier renewal was lost; or it ran out, or the server restarted and forgot it: then it may still be free.
      const present = await kv.get(name);
      if (present === null) return await kv.create(name, holder);
      if (present.operation === 'PUT' && !Buffer.from(present.value).equals(holder)) return undefined;
      return await kv.update(name, holder, present.revision);
    });
  }

  async #with<T>(link: Link, what: string, signal: AbortSignal, work: (kv: KV) => Promise<T>): Promise<T> {
    const ends = AbortSignal.any([signal, link.gone]);
    try {
      const kv = await within(this.#opened.of(link), BUS_LIMITS.waitMs, ends, what);
      return await within(work(kv), BUS_LIMITS.waitMs, ends, what);
    } catch (error) {
      this.#opened.failed(error);
      throw error;
    }
  }

  async #open(link: Link): Promise<KV> {
    return await link.js.views.kv(CLAIM_BUCKET, {
      ttl: this.#ttlMs,
      storage: StorageType.Memory,
      replicas: this.#link.options.replicas ?? 1,
      history: 1,
    });
  }
}

function isTaken(error: unknown): boolean {
  const answer = error instanceof Error && 'api_error' in error ? error.api_error : undefined;
  return (
    typeof answer === 'object' &&
    answer !== null &&
    'err_code' in answer &&
    WRONG_LAST_SEQUENCE.includes(answer.err_code)
  );
}
