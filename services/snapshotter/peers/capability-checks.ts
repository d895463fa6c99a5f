import type { KeyObject } from 'node:crypto';
import type { Digest } from '#shared/digest/digest.ts';
import { CapabilityError, verifyCapability, type Capability } from '#shared/distribution/capability.ts';

/** Capabilities whose signature is known to be right; a node has one for each layer. */
const REMEMBERED = 1024;

/** Checks what peers show. The signature is verified once: a peer shows the same capability with each of its requests. */
export class CapabilityChecks {
  readonly #publicKey: () => KeyObject | undefined;
  readonly #verified = new Map<string, Capability>();
  #key: KeyObject | undefined;

  /** @param publicKey whose capabilities count; undefined = nobody's yet */
  constructor(publicKey: () => KeyObject | undefined) {
    this.#publicKey = publicKey;
  }

  /** Of a request's authorization; undefined = it gives no right to the layer now. */
  check(authorization: string | undefined, layer: Digest, nowMs: number): Capability | undefined {
    const key = this.#publicKey();
    const [scheme, text = ''] = (authorization ?? '').split(' ');
    if (key === undefined || scheme !== 'Kindling') return undefined;
    if (key !== this.#key) {
      this.#key = key;
      this.#verified.clear();
    }
    const known = this.#verified.get(text);
    if (known !== undefined && known.layer === layer && known.expiresMs > nowMs) return known;
    try {
      const capability = verifyCapability(text, layer, key, nowMs);
      for (const oldest of this.#verified.keys()) {
        if (this.#verified.size < REMEMBERED) break;
        this.#verified.delete(oldest);
      }
      this.#verified.set(text, capability);
      return capability;
    } catch (error) {
      if (error instanceof CapabilityError) return undefined;
      throw error;
    }
  }
}
