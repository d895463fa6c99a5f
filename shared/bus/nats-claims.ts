import { randomUUID } from 'node:crypto';
import { StorageType, type KV } from 'nats';
import { BUS_LIMITS, type Claim, type Claims } from './bus.ts';
import { pause, within } from './deadline.ts';
import { toBusError, type NatsLink } from './nats-link.ts';
import { checkName } from './subject.ts';

const CLAIM_BUCKET = 'KINDLING_CLAIMS';
const DEFAULT_TTL_MS = 10_000;
/** JetStream's code for "someone wrote it since". */
const WRONG_LAST_SEQUENCE = 10071;

/**
 * A claim is a key that the server itself forgets when it is not written again in time, so that no two clocks are ever
 * compared. Kept in memory: a server that restarts forgets all claims, and their holders take them anew.
 */
export class NatsClaims implements Claims {
  readonly #link: NatsLink;
  readonly #ttlMs: number;

  constructor(link: NatsLink) {
    this.#link = link;
    this.#ttlMs = link.options.claimTtlMs ?? DEFAULT_TTL_MS;
  }

  async claim(name: string, signal: AbortSignal): Promise<Claim | undefined> {
    checkName(name, 'the name of a claim');
    const holder = Buffer.from(`${this.#link.options.clientName} ${randomUUID()}`);
    const revision = await this.#create(name, holder, signal);
    return revision === undefined ? undefined : this.#hold(name, holder, revision);
  }

  async #create(name: string, holder: Uint8Array, signal: AbortSignal): Promise<number | undefined> {
    const what = `claim ${name}`;
    try {
      return await this.#with(what, signal, (kv) => kv.create(name, holder));
    } catch (error) {
      if (isTaken(error)) return undefined;
      throw toBusError(error, what);
    }
  }

  #hold(name: string, holder: Uint8Array, first: number): Claim {
    const lost = new AbortController();
    const stop = new AbortController();
    let revision: number | undefined = first;
    const renew = async () => {
      let renewed = performance.now();
      for (;;) {
        await pause(this.#ttlMs / 3, stop.signal);
        if (stop.signal.aborted) return;
        try {
          const known: number | undefined = revision;
          revision = await this.#with(`renew the claim ${name}`, stop.signal, (kv) =>
            known === undefined ? kv.create(name, holder) : kv.update(name, holder, known),
          );
          renewed = performance.now();
        } catch (error) {
          if (stop.signal.aborted) return;
          // The server restarted and forgot it, or it ran out: it may still be free.
          if (isTaken(error) && revision !== undefined) revision = undefined;
          else if (isTaken(error) || performance.now() - renewed > this.#ttlMs) {
            revision = undefined;
            lost.abort();
            return;
          }
        }
      }
    };
    const renewing = renew();
    return {
      lost: lost.signal,
      [Symbol.asyncDispose]: async () => {
        stop.abort();
        await renewing;
        const last = revision;
        revision = undefined;
        if (last === undefined || !this.#link.connected()) return;
        // What cannot be given back now runs out by itself.
        await this.#with(`give the claim ${name} back`, this.#link.closed, (kv) =>
          kv.delete(name, { previousSeq: last }),
        ).catch(() => {});
      },
    };
  }

  async #with<T>(what: string, signal: AbortSignal, work: (kv: KV) => Promise<T>): Promise<T> {
    const link = await this.#link.link(what, signal);
    const ends = AbortSignal.any([signal, link.gone]);
    const opened = link.js.views.kv(CLAIM_BUCKET, {
      ttl: this.#ttlMs,
      storage: StorageType.Memory,
      replicas: this.#link.options.replicas ?? 1,
      history: 1,
    });
    const kv = await within(opened, BUS_LIMITS.waitMs, ends, what);
    return await within(work(kv), BUS_LIMITS.waitMs, ends, what);
  }
}

function isTaken(error: unknown): boolean {
  const answer = error instanceof Error && 'api_error' in error ? error.api_error : undefined;
  return (
    typeof answer === 'object' && answer !== null && 'err_code' in answer && answer.err_code === WRONG_LAST_SEQUENCE
  );
}
