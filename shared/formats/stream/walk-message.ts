import type { LayerErrorCode } from '#shared/layer/layer-index.ts';
import type { StreamFormat } from './any-walker.ts';
import type { StreamCut } from './stream-walker.ts';

/** What the walking thread is given; `push` names a buffer of the input ring that is full up to `length`. */
export type WalkOrder =
  | { readonly kind: 'push'; readonly slot: number; readonly length: number }
  | { readonly kind: 'end' };

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
  /** `INPUT_SLOTS` buffers of the blob. */
  readonly input: SharedArrayBuffer;
  /** `RING_SLOTS` buffers of the stream. */
  readonly ring: SharedArrayBuffer;
  /** One number: buffers of the ring that the other side has finished with, ever. */
  readonly freed: SharedArrayBuffer;
}

/** Buffers between the two threads, of `WALK_BUFFER_BYTES`: shared, so that nothing has to be collected. */
export const RING_SLOTS = 16;
export const INPUT_SLOTS = 8;
