import type { LayerErrorCode } from '#shared/layer/layer-index.ts';
import type { StreamFormat } from './any-walker.ts';
import type { StreamCut } from './stream-walker.ts';

/** What the walking thread is given. */
export type WalkOrder = { readonly kind: 'push'; readonly bytes: Uint8Array } | { readonly kind: 'end' };

/** What it says; `data` names a buffer of the ring that is full up to `length`. */
export type WalkReport =
  | { readonly kind: 'data'; readonly slot: number; readonly length: number }
  | { readonly kind: 'cut'; readonly cut: StreamCut }
  | { readonly kind: 'amend'; readonly blobOffset: number; readonly blobLength: number }
  | { readonly kind: 'pushed' }
  | { readonly kind: 'ended'; readonly format: StreamFormat }
  | { readonly kind: 'refused'; readonly code: LayerErrorCode; readonly message: string };

export interface WalkThreadData {
  readonly blobSize: number;
  /** `RING_SLOTS` buffers. */
  readonly ring: SharedArrayBuffer;
  /** One number: buffers of the ring that the other side has finished with, ever. */
  readonly freed: SharedArrayBuffer;
}

/** Buffers between the two threads. */
export const RING_SLOTS = 16;
