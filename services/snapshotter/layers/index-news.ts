import type { Claim } from '#shared/bus/bus.ts';
import type { Digest } from '#shared/digest/digest.ts';

export type PublishIndex = (layer: Digest, index: Uint8Array, signal: AbortSignal) => Promise<void>;

/** An index that was made here and that others may wait for: until it is published, or disposed of. */
export class IndexNews implements AsyncDisposable {
  readonly #tell: PublishIndex;
  readonly #layer: Digest;
  readonly #index: Uint8Array;
  readonly #claim: Claim | undefined;

  constructor(tell: PublishIndex, layer: Digest, index: Uint8Array, claim: Claim | undefined) {
    this.#tell = tell;
    this.#layer = layer;
    this.#index = index;
    this.#claim = claim;
  }

  /** When the layer can be had from this node. */
  async publish(signal: AbortSignal): Promise<void> {
    await using _held = this.#claim;
    await this.#tell(this.#layer, this.#index, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#claim?.[Symbol.asyncDispose]();
  }
}
