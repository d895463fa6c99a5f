import { hexOf, type Digest } from '#shared/digest/digest.ts';
import type { Claims } from '#shared/bus/bus.ts';
import { pause } from '#shared/bus/deadline.ts';
import type { IndexedLayer } from '#shared/events/image-events.ts';
import type { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import { decodeLayerIndex } from '#shared/layer/index-codec.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { LayerError } from '#shared/layer/layer-index.ts';
import type { Reference } from '#shared/registry/reference.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { ImageLayer } from './image-layers.ts';
import type { BuildIndex } from './index-build.ts';
import type { IndexerMetrics } from './indexer-metrics.ts';
import type { Slots } from './slots.ts';

/** How long another's work on a layer is waited for before the event is given back to the queue. */
const WAIT_MS = 15 * 60 * 1000;
const LOOK_MS = 500;
const MAX_LOOK_MS = 5_000;

export interface LayerIndexerDeps {
  readonly indexes: ClusterIndexes;
  readonly claims: Claims;
  readonly build: BuildIndex;
  readonly slots: Slots;
  /** Throws a LayerError for an index that no node could use; `checkUsable` unless told otherwise. */
  readonly check?: ((bytes: Uint8Array, layer: Digest) => unknown) | undefined;
  readonly metrics: IndexerMetrics;
  readonly logger: Logger;
}

/** Where a layer's blob is, and what may lie beside the image that it is indexed for. */
export type ImageName = Pick<Reference, 'repository' | 'tag'>;

/** Sees to it that the cluster has a layer's index; of all indexers one builds it. */
export class LayerIndexer {
  readonly #deps: LayerIndexerDeps;

  constructor(deps: LayerIndexerDeps) {
    this.#deps = deps;
  }

  /** @throws RegistryError, BusError, LayerError `digest-mismatch`: another attempt may go better */
  async index(image: ImageName, layer: ImageLayer, signal: AbortSignal): Promise<IndexedLayer> {
    const { indexes, claims, slots } = this.#deps;
    const until = performance.now() + WAIT_MS;
    for (let look = LOOK_MS; ; look = Math.min(MAX_LOOK_MS, look * 2)) {
      const present = await this.#present(layer, signal);
      if (present) return present;
      // The slot first: a claim that waits for a slot would keep idle indexers from the layer.
      const built = await slots.use(signal, async () => {
        const claim = await claims.claim(`index-${hexOf(layer.digest)}`, signal);
        if (!claim) return undefined;
        await using _held = claim;
        // Between the look and the claim another may have finished it.
        if (await indexes.has(layer.digest, signal)) return undefined;
        // A claim that is lost does not end the work: at worst two publish the same bytes.
        return await this.#build(image, layer, signal);
      });
      if (built) return built;
      if (await indexes.has(layer.digest, signal)) continue;
      if (performance.now() > until)
        throw new Error(`Another indexer has worked on ${layer.digest} for ${WAIT_MS / 60_000} minutes`);
      await pause(look, signal);
      signal.throwIfAborted();
    }
  }

  /** What is there is believed only after a look at it: a damaged index would make nodes read the whole blob for ever. */
  async #present(layer: ImageLayer, signal: AbortSignal): Promise<IndexedLayer | undefined> {
    const { indexes, check = checkUsable, metrics, logger } = this.#deps;
    const bytes = await indexes.find({ layer: layer.digest }, signal);
    if (bytes === undefined) return undefined;
    try {
      check(bytes, layer.digest);
    } catch (error) {
      if (!(error instanceof LayerError)) throw error;
      logger.error({ layer: layer.digest, err: error }, 'the index in the cluster is damaged; building it anew');
      await indexes.discard(layer.digest, signal);
      return undefined;
    }
    metrics.layers.inc({ outcome: 'present' });
    return { layer: layer.digest, sizeBytes: layer.size, state: 'indexed' };
  }

  async #build({ repository, tag }: ImageName, layer: ImageLayer, signal: AbortSignal): Promise<IndexedLayer> {
    const { indexes, check = checkUsable, metrics, logger } = this.#deps;
    const started = performance.now();
    try {
      const onContradiction = (difference: string): void => {
        metrics.contradictions.inc();
        logger.error(
          { layer: layer.digest, repository, difference },
          'the table of contents of a layer contradicts its tar; the index is made from the tar',
        );
      };
      const options = { diffId: layer.diffId, tag, onContradiction };
      const built = await this.#deps.build(repository, layer, options, signal);
      check(built.bytes, layer.digest);
      await indexes.publish(layer.digest, built.bytes, signal);
      const seconds = (performance.now() - started) / 1000;
      metrics.layers.inc({ outcome: 'built' });
      metrics.seconds.observe(seconds);
      metrics.layerBytes.inc(layer.size);
      metrics.indexBytes.inc(built.bytes.length);
      logger.info(
        {
          layer: layer.digest,
          repository,
          format: built.index.format,
          spans: built.index.spans.length,
          layerBytes: layer.size,
          indexBytes: built.bytes.length,
          seconds,
        },
        'built an index',
      );
      return { layer: layer.digest, sizeBytes: layer.size, state: 'indexed', format: built.index.format };
    } catch (error) {
      if (!(error instanceof LayerError) || error.code === 'digest-mismatch') {
        metrics.layers.inc({ outcome: 'failed' });
        throw error;
      }
      // The blob is what it claims to be and will never be otherwise: it is pulled whole, and that is said.
      metrics.layers.inc({ outcome: 'not-lazy' });
      logger.warn({ layer: layer.digest, repository, err: error }, 'a layer cannot be lazy');
      return {
        layer: layer.digest,
        sizeBytes: layer.size,
        state: 'not-lazy',
        reason: `${error.code}: ${error.message}`.slice(0, 600),
      };
    }
  }
}

/** As a node would: whole, of this layer, and a tree that can be laid out. */
function checkUsable(bytes: Uint8Array, layer: Digest): void {
  buildLayerImage(decodeLayerIndex(bytes, layer));
}
