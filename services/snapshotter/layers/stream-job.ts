import type { MessagePort } from 'node:worker_threads';
import type { Digest } from '#shared/digest/digest.ts';
import type { BuiltLayer } from './worker-job.ts';

/** What a stream worker is started with. */
export interface StreamJob {
  readonly layer: Digest;
  readonly blobSize: number;
  /** Where the layer is made. */
  readonly folder: string;
  readonly port: MessagePort;
  /** Whether the encoded index is written too, for others. */
  readonly keepIndex: boolean;
}

/** To the worker: the blob's bytes in order, each answered by `taken`; then `finish`; `end` at any time. */
export type StreamMessage =
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array<ArrayBuffer> }
  | { readonly kind: 'finish' | 'end' };

export type StreamAnswer =
  | { readonly kind: 'taken' }
  | { readonly kind: 'built'; readonly layer: BuiltLayer }
  | { readonly kind: 'failed'; readonly code: string; readonly message: string };
