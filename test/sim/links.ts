import type { EventQueue } from './event-queue.ts';

interface Flow {
  readonly from: number;
  readonly to: number;
  readonly done: () => void;
  left: number;
  rate: number;
  sinceS: number;
  dueS: number;
  ended: boolean;
}

/**
 * Full-duplex links behind a switch that never is the bottleneck. A flow gets the smaller of its equal shares of the
 * two links it uses; what a flow cannot use of its share is not given to others, so this is a little slower than TCP would be.
 */
export class Links {
  readonly #queue: EventQueue;
  readonly #bytesPerS: (node: number) => number;
  readonly #up: Set<Flow>[];
  readonly #down: Set<Flow>[];

  constructor(queue: EventQueue, count: number, bytesPerS: (node: number) => number) {
    this.#queue = queue;
    this.#bytesPerS = bytesPerS;
    this.#up = Array.from({ length: count }, () => new Set());
    this.#down = Array.from({ length: count }, () => new Set());
  }

  downloads(node: number): number {
    return this.#down[node]?.size ?? 0;
  }

  send(from: number, to: number, bytes: number, done: () => void): void {
    const flow = { from, to, done, left: bytes, rate: 0, sinceS: this.#queue.now, dueS: Infinity, ended: false };
    this.#up[from]?.add(flow);
    this.#down[to]?.add(flow);
    this.#share(from, to);
  }

  #share(from: number, to: number): void {
    for (const flow of this.#up[from] ?? []) this.#adapt(flow);
    for (const flow of this.#down[to] ?? []) if (flow.from !== from) this.#adapt(flow);
  }

  #adapt(flow: Flow): void {
    const { now } = this.#queue;
    const up = this.#bytesPerS(flow.from) / (this.#up[flow.from]?.size ?? 1);
    const down = this.#bytesPerS(flow.to) / (this.#down[flow.to]?.size ?? 1);
    const rate = Math.min(up, down);
    if (rate === flow.rate) return;
    flow.left -= flow.rate * (now - flow.sinceS);
    flow.sinceS = now;
    flow.rate = rate;
    const dueS = now + Math.max(0, flow.left) / rate;
    // One that has become slower finds that out when its event comes.
    if (dueS < flow.dueS) this.#schedule(flow, dueS);
  }

  #schedule(flow: Flow, dueS: number): void {
    flow.dueS = dueS;
    this.#queue.after(dueS - this.#queue.now, () => {
      if (flow.ended || flow.dueS !== dueS) return;
      const { now } = this.#queue;
      const left = flow.left - flow.rate * (now - flow.sinceS);
      if (left > 1) {
        this.#schedule(flow, now + left / flow.rate);
        return;
      }
      flow.ended = true;
      this.#up[flow.from]?.delete(flow);
      this.#down[flow.to]?.delete(flow);
      this.#share(flow.from, flow.to);
      flow.done();
    });
  }
}
