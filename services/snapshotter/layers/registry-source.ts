import type { Digest } from '#shared/digest/digest.ts';
import { releaseBytes } from '#shared/formats/release-bytes.ts';
import type { DeliverSpan, SpanRequest, SpanSource } from './span-source.ts';

/** The part of the registry client that this needs. */
export interface BlobRanges {
  blobRange(
    repository: string,
    digest: Digest,
    start: number,
    end: number,
    signal: AbortSignal,
  ): AsyncIterable<Uint8Array>;
}

/** A reader that waits must not wait for a connection that says nothing; the registry client itself is more patient. */
export const SILENT_MS = 10_000;

export class SilentRegistryError extends Error {
  override readonly name = 'SilentRegistryError';
  readonly code = 'silent';
}

export class NoOriginError extends Error {
  override readonly name = 'NoOriginError';
  readonly code = 'no-origin';
}

/** Spans as ranges of the blob, from the first of the layer's repositories that answers. */
export class RegistrySource implements SpanSource {
  readonly name = 'registry';
  readonly #client: BlobRanges;
  readonly #silentMs: number;

  constructor(client: BlobRanges, options: { readonly silentMs?: number } = {}) {
    this.#client = client;
    this.#silentMs = options.silentMs ?? SILENT_MS;
  }

  async fetch(request: SpanRequest, deliver: DeliverSpan, signal: AbortSignal): Promise<void> {
    let next = request.first;
    let failure: unknown = new NoOriginError(`Cannot fetch ${request.layer}: no repository is known to have it`);
    for (const origin of request.origins) {
      try {
        const rest = { ...request, first: next };
        await this.#fetchFrom(
          origin.repository,
          rest,
          (span, bytes) => {
            next = span + 1;
            void deliver(span, { form: 'compressed', bytes });
          },
          signal,
        );
        return;
      } catch (error) {
        signal.throwIfAborted();
        failure = error;
      }
    }
    throw failure;
  }

  rejected(): void {
    // The observer counts it. There is no other registry to turn to: the scheduler asks once more and then gives up.
  }

  async #fetchFrom(
    repository: string,
    request: SpanRequest,
    deliver: (span: number, bytes: Uint8Array) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const { map, last } = request;
    let span = request.first;
    let position = map.blobStart(span);
    /** Of the spans from `span` on that have begun: they touch, or share a byte where a checkpoint lies inside one. */
    const begun: Uint8Array[] = [];
    const silence = new AbortController();
    const given = `Cannot read ${request.layer} from ${repository}: nothing came for ${this.#silentMs} ms`;
    const timer = setTimeout(() => silence.abort(new SilentRegistryError(given)), this.#silentMs);
    const either = AbortSignal.any([signal, silence.signal]);
    try {
      for await (const chunk of this.#client.blobRange(
        repository,
        request.layer,
        position,
        map.blobEnd(last),
        either,
      )) {
        timer.refresh();
        const chunkEnd = position + chunk.length;
        for (let at = span; at <= last && map.blobStart(at) < chunkEnd; at++) {
          const start = map.blobStart(at);
          const end = map.blobEnd(at);
          // A buffer of its own, so that it can be handed to a decoder's thread without a copy.
          const bytes = (begun[at - span] ??= Buffer.allocUnsafeSlow(end - start));
          const from = Math.max(start, position);
          const to = Math.min(end, chunkEnd);
          if (to > from) bytes.set(chunk.subarray(from - position, to - position), from - start);
        }
        position = chunkEnd;
        releaseRead(chunk);
        while (span <= last && map.blobEnd(span) <= position) {
          const bytes = begun.shift() ?? new Uint8Array(0);
          deliver(span++, bytes);
        }
      }
    } catch (error) {
      signal.throwIfAborted();
      silence.signal.throwIfAborted();
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** What comes in one read of a socket lies in one buffer, in order: behind its last part nothing of it is wanted any more. */
function releaseRead(chunk: Uint8Array): void {
  if (chunk.byteOffset + chunk.length === chunk.buffer.byteLength) releaseBytes(chunk);
}
