import { status as grpcStatus } from '@grpc/grpc-js';

/** Closed set of reasons why a snapshot request is refused; containerd acts on each in its own way. */
export type SnapshotErrorCode =
  | 'not-found'
  | 'already-exists'
  | 'failed-precondition'
  | 'invalid'
  | 'unavailable'
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
  cancelled: grpcStatus.CANCELLED,
};
