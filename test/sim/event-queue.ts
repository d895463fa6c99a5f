/** A heap of things to happen at times, for discrete-event simulation. */
export class EventQueue {
  readonly #times: number[] = [];
  readonly #actions: (() => void)[] = [];
  now = 0;
  count = 0;

  /** Runs `action` after `delay` (>= 0), in the unit of `now`. */
  after(delay: number, action: () => void): void {
    const at = this.now + delay;
    let i = this.#times.length;
    this.#times.push(at);
    this.#actions.push(action);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      const time = this.#times[parent] ?? 0;
      if (time <= at) break;
      this.#set(i, time, this.#actions[parent] ?? action);
      i = parent;
    }
    this.#set(i, at, action);
  }

  /** Runs until nothing is left; throws when more than `limit` events did not end it. */
  run(limit: number): void {
    for (;;) {
      const time = this.#times[0];
      const action = this.#actions[0];
      if (time === undefined || action === undefined) return;
      this.#removeFirst();
      this.now = time;
      if (++this.count > limit) throw new Error(`The simulation has not ended after ${limit} events`);
      action();
    }
  }

  #removeFirst(): void {
    const time = this.#times.pop();
    const action = this.#actions.pop();
    const length = this.#times.length;
    if (time === undefined || action === undefined || length === 0) return;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= length) break;
      if (child + 1 < length && (this.#times[child + 1] ?? 0) < (this.#times[child] ?? 0)) child++;
      const childTime = this.#times[child] ?? 0;
      if (childTime >= time) break;
      this.#set(i, childTime, this.#actions[child] ?? action);
      i = child;
    }
    this.#set(i, time, action);
  }

  #set(i: number, time: number, action: () => void): void {
    this.#times[i] = time;
    this.#actions[i] = action;
  }
}
