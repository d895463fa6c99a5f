import type { Digest } from '#shared/digest/digest.ts';
import type { Layer } from '../layers/layer.ts';
import { isOfNodeOnly } from '../layers/layer-record.ts';
import type { LayerStore } from '../layers/layer-store.ts';
import type { HeldLayer, SpanHolder } from './span-holder.ts';

/**
 * The layer store as sharing sees it. Holds nothing until a store is attached: sources are made before the store is. Layers that were laid
 * out by a SOCI index are not among them: their spans are others, and nobody could verify a payload of theirs.
 */
export class LayerHolder implements SpanHolder {
  #store: LayerStore | undefined;
  readonly #residentListeners = new Set<(layer: Digest, span: number) => void>();
  readonly #removedListeners = new Set<(layer: Digest) => void>();

  attach(store: LayerStore): void {
    this.#store = store;
    store.onResident((layer, span) => {
      if (this.#shared(layer) === undefined) return;
      for (const listener of this.#residentListeners) listener(layer, span);
    });
    store.onRemoved((layer) => {
      for (const listener of this.#removedListeners) listener(layer);
    });
  }

  layers(): readonly HeldLayer[] {
    return Array.from(this.#store?.layers.keys() ?? []).flatMap((layer) => this.get(layer) ?? []);
  }

  get(digest: Digest): HeldLayer | undefined {
    const layer = this.#shared(digest);
    if (layer === undefined) return undefined;
    return { layer: digest, spanCount: layer.record.spanCount, residency: layer.residencyBytes };
  }

  #shared(digest: Digest): Layer | undefined {
    const layer = this.#store?.layers.get(digest);
    return layer === undefined || isOfNodeOnly(layer.record) ? undefined : layer;
  }

  has(layer: Digest, span: number): boolean {
    return this.#shared(layer)?.has(span) === true;
  }

  async readPayload(layer: Digest, span: number): Promise<Uint8Array | undefined> {
    return await this.#shared(layer)?.readPayload(span);
  }

  async hurry(layer: Digest, span: number, signal: AbortSignal): Promise<void> {
    await this.#shared(layer)?.hurry(span, signal);
  }

  onResident(listener: (layer: Digest, span: number) => void): () => void {
    this.#residentListeners.add(listener);
    return () => this.#residentListeners.delete(listener);
  }

  onRemoved(listener: (layer: Digest) => void): () => void {
    this.#removedListeners.add(listener);
    return () => this.#removedListeners.delete(listener);
  }
}
