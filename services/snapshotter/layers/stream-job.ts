import type { MessagePort } from 'node:worker_threads';
import type { Digest } from '#shared/digest/digest.ts';

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
