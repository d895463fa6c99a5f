import { constants } from 'node:os';

/**
 * A read of a layer image that cannot be answered.
 *
 * `unavailable`: no source had the span within the bound; `mismatch`: what the sources had did not match its digest;
 * `no-space`: verified, but there is no room to keep it; `broken`: our own files are damaged; `closed`: shutting down.
 */
export type LayerReadErrorCode = 'unavailable' | 'mismatch' | 'no-space' | 'broken' | 'closed';

export class LayerReadError extends Error {
  override readonly name = 'LayerReadError';
  readonly code: LayerReadErrorCode;
  /** What the reader gets, whatever the reason. */
  readonly errno = constants.errno.EIO;
  constructor(code: LayerReadErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
