import { status as grpcStatus } from '@grpc/grpc-js';

/** Closed set of reasons why a snapshot request is refused; containerd acts on each in its own way. */
export type SnapshotErrorCode =
  | 'not-found'
  | 'already-exists'
  | 'failed-precondition'
  | 'invalid'
  | 'unavailable'
  | 'disk-full'
  | 'cancelled';

export class SnapshotError extends Error {
  override readonly name = 'SnapshotError';
  readonly code: SnapshotErrorCode;
  constructor(code: SnapshotErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** The only place where our errors become gRPC's. What is not ours is INTERNAL. */
export const GRPC_STATUS: Readonly<Record<SnapshotErrorCode, grpcStatus>> = {
  'not-found': grpcStatus.NOT_FOUND,
  'already-exists': grpcStatus.ALREADY_EXISTS,
  'failed-precondition': grpcStatus.FAILED_PRECONDITION,
  invalid: grpcStatus.INVALID_ARGUMENT,
  unavailable: grpcStatus.UNAVAILABLE,
  'disk-full': grpcStatus.RESOURCE_EXHAUSTED,
  cancelled: grpcStatus.CANCELLED,
};

const SQLITE_FULL = 13;

export function isDiskFull(cause: unknown): boolean {
  if (!(cause instanceof Error)) return false;
  return (
    ('code' in cause && (cause.code === 'ENOSPC' || cause.code === 'EDQUOT')) ||
    ('errcode' in cause && cause.errcode === SQLITE_FULL)
  );
}

/** What a call failed with, as one of ours where it is: a caller who has gone, a disk that is full. */
export function toSnapshotError(cause: unknown): unknown {
  if (cause instanceof SnapshotError || !(cause instanceof Error)) return cause;
  if (cause.name === 'AbortError') return new SnapshotError('cancelled', 'The caller has gone', { cause });
  if (!isDiskFull(cause)) return cause;
  return new SnapshotError(
    'disk-full',
    `No space left on the disk of Kindling's data folder: free some, or set a smaller quota (${cause.message})`,
    { cause },
  );
}
