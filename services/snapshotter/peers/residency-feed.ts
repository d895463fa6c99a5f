import type { ServerResponse } from 'node:http';
import type { Digest } from '#shared/digest/digest.ts';
import {
  residencyBeat,
  residencyChanges,
  residencyHead,
  type ResidencyChange,
} from '#shared/distribution/residency-frames.ts';
import type { SpanHolder } from './span-holder.ts';

const BEAT_MS = 1_000;
/** Of one layer; a neighbour beyond that finds others. */
const FOLLOWERS = 128;
/** A follower that takes nothing loses the stream before it costs more memory than this. */
const MAX_UNSENT_BYTES = 1024 * 1024;

/** Tells those who follow a layer which spans of it have come, all that came in one turn of the loop together. */
export class ResidencyFeed implements Disposable {
  readonly #holder: SpanHolder;
  readonly #followers = new Map<Digest, Set<ServerResponse>>();
  readonly #changes = new Map<Digest, ResidencyChange[]>();
  readonly #stops: (() => void)[];
  readonly #timer: NodeJS.Timeout;
  #sending = false;

  constructor(holder: SpanHolder) {
    this.#holder = holder;
    this.#stops = [
      holder.onResident((layer, span) => this.#note(layer, span)),
      holder.onRemoved((layer) => {
        for (const response of this.#followers.get(layer) ?? []) response.end();
      }),
    ];
    this.#timer = setInterval(() => this.#beat(), BEAT_MS).unref();
  }

  /** Answers with the stream. False: the layer is not here, or has too many followers. */
  open(layer: Digest, response: ServerResponse): boolean {
    const held = this.#holder.get(layer);
    const followers = this.#followers.get(layer) ?? new Set();
    if (held === undefined || followers.size >= FOLLOWERS) return false;
    this.#followers.set(layer, followers);
    followers.add(response);
    response.on('close', () => {
      followers.delete(response);
      if (followers.size === 0 && this.#followers.get(layer) === followers) this.#followers.delete(layer);
    });
    response.writeHead(200, { 'content-type': 'application/vnd.kindling.residency.v1' });
    response.write(residencyHead(held.spanCount, held.residency));
    return true;
  }

  [Symbol.dispose](): void {
    for (const stop of this.#stops) stop();
    clearInterval(this.#timer);
  }

  #note(layer: Digest, span: number): void {
    if (!this.#followers.has(layer)) return;
    const changes = this.#changes.get(layer);
    if (changes === undefined) this.#changes.set(layer, [{ span, has: true }]);
    else changes.push({ span, has: true });
    if (this.#sending) return;
    this.#sending = true;
    setImmediate(() => {
      this.#sending = false;
      for (const [changed, list] of this.#changes) this.#send(changed, residencyChanges(list));
      this.#changes.clear();
    });
  }

  #beat(): void {
    for (const layer of this.#followers.keys()) this.#send(layer, residencyBeat());
  }

  #send(layer: Digest, bytes: Buffer): void {
    for (const response of this.#followers.get(layer) ?? []) {
      if (response.writableLength > MAX_UNSENT_BYTES) response.destroy();
      else response.write(bytes);
    }
  }
}
