const BLOCKED_MS = 10 * 60_000;
const REMEMBERED = 4096;

/** Peers that have sent wrong bytes: nothing is asked from them for a while. */
export class BadPeers {
  readonly #until = new Map<string, number>();

  block(node: string, nowMs: number): void {
    this.#until.delete(node);
    this.#until.set(node, nowMs + BLOCKED_MS);
    for (const oldest of this.#until.keys()) {
      if (this.#until.size <= REMEMBERED) break;
      this.#until.delete(oldest);
    }
  }

  /** The latest first. */
  blocked(nowMs: number): string[] {
    return Array.from(this.#until)
      .flatMap(([node, untilMs]) => (untilMs > nowMs ? [node] : []))
      .toReversed();
  }

  isBlocked(node: string, nowMs: number): boolean {
    return (this.#until.get(node) ?? 0) > nowMs;
  }
}
