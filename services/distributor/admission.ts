import { createHash } from 'node:crypto';
import type { Digest } from '#shared/digest/digest.ts';
import type { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import { parseRepository, type RepositoryName } from '#shared/registry/reference.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';

export type Admission = { readonly admitted: true } | { readonly admitted: false; readonly reason: string };

/** How long what the registry said is believed; at most so long after a permission was withdrawn a node gets in. */
const ADMITTED_MS = 60_000;
const REFUSED_MS = 2_000;
const REMEMBERED = 10_000;
const ASK_TIMEOUT_MS = 3_000;

/**
 * Lets a node into a layer's swarm when the registry gives the layer to the node's own Authorization: nobody gets from peers
 * what they could not pull. Registries not allowed are not asked at all, whatever a node names.
 */
export class AdmissionControl {
  readonly #registry: Pick<RegistryClient, 'blobExists'>;
  readonly #allowed: AllowedRepositories;
  readonly #known = new Map<string, { readonly answer: Promise<Admission>; readonly untilMs: number }>();

  constructor(registry: Pick<RegistryClient, 'blobExists'>, allowed: AllowedRepositories) {
    this.#registry = registry;
    this.#allowed = allowed;
  }

  async admit(
    layer: Digest,
    repository: RepositoryName,
    authorization: string | undefined,
    nowMs: number,
    signal: AbortSignal,
  ): Promise<Admission> {
    try {
      parseRepository(repository);
    } catch {
      return { admitted: false, reason: `${repository.slice(0, 100)} is not a repository` };
    }
    if (!this.#allowed.allows(repository)) {
      return { admitted: false, reason: `${repository} is not among KINDLING_DISTRIBUTOR_REGISTRIES` };
    }
    // No credential is kept, and none can be guessed from the other.
    const key = createHash('sha256')
      .update(JSON.stringify([layer, repository, authorization ?? '']))
      .digest('base64');
    const known = this.#known.get(key);
    if (known !== undefined && known.untilMs > nowMs) return await known.answer;
    const answer = this.#ask(layer, repository, authorization, signal);
    // Nodes that start at the same second ask at the same time: one question for all of them.
    this.#remember(key, answer, nowMs + ADMITTED_MS);
    const result = await answer;
    if (!result.admitted) this.#remember(key, answer, nowMs + REFUSED_MS);
    return result;
  }

  async #ask(
    layer: Digest,
    repository: RepositoryName,
    authorization: string | undefined,
    signal: AbortSignal,
  ): Promise<Admission> {
    const bounded = AbortSignal.any([signal, AbortSignal.timeout(ASK_TIMEOUT_MS)]);
    try {
      const exists = await this.#registry.blobExists(repository, layer, bounded, {
        authorization: authorization ?? '',
      });
      return exists ? { admitted: true } : { admitted: false, reason: `${repository} has no ${layer}` };
    } catch (error) {
      return { admitted: false, reason: error instanceof Error ? error.message.slice(0, 500) : 'the registry failed' };
    }
  }

  #remember(key: string, answer: Promise<Admission>, untilMs: number): void {
    this.#known.delete(key);
    this.#known.set(key, { answer, untilMs });
    for (const oldest of this.#known.keys()) {
      if (this.#known.size <= REMEMBERED) break;
      this.#known.delete(oldest);
    }
  }
}
