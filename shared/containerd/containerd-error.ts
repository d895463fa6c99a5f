import { status as grpcStatus } from '@grpc/grpc-js';

/** Closed set of containerd's answers that callers tell apart. */
export type ContainerdErrorCode =
  | 'not-found'
  | 'already-exists'
  | 'unavailable'
  | 'failed-precondition'
  | 'invalid'
  | 'cancelled'
  | 'internal';

const CODES: Readonly<Record<number, ContainerdErrorCode>> = {
  [grpcStatus.NOT_FOUND]: 'not-found',
  [grpcStatus.ALREADY_EXISTS]: 'already-exists',
  [grpcStatus.UNAVAILABLE]: 'unavailable',
  [grpcStatus.FAILED_PRECONDITION]: 'failed-precondition',
  [grpcStatus.INVALID_ARGUMENT]: 'invalid',
  [grpcStatus.OUT_OF_RANGE]: 'invalid',
  [grpcStatus.CANCELLED]: 'cancelled',
  [grpcStatus.DEADLINE_EXCEEDED]: 'cancelled',
};

/** A call to containerd (or to a service that speaks its API) failed. The message names the call and the socket. */
export class ContainerdError extends Error {
  override readonly name = 'ContainerdError';
  readonly code: ContainerdErrorCode;
  /** The gRPC method's path, such as `/containerd.services.images.v1.Images/Get`. */
  readonly method: string;
  /** Trying the same call again later may work. */
  readonly retryable: boolean;

  constructor(code: ContainerdErrorCode, method: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.method = method;
    this.retryable = code === 'unavailable';
  }
}

/** The edge where gRPC's errors become ours. */
export function toContainerdError(cause: unknown, method: string, address: string): ContainerdError {
  if (cause instanceof ContainerdError) return cause;
  const number = typeof cause === 'object' && cause !== null && 'code' in cause ? Number(cause.code) : -1;
  const details = typeof cause === 'object' && cause !== null && 'details' in cause ? String(cause.details) : '';
  const code = CODES[number] ?? 'internal';
  const hint = code === 'unavailable' ? `; is containerd running, and is ${address} its socket?` : '';
  return new ContainerdError(
    code,
    method,
    `Cannot call ${method.slice(method.lastIndexOf('/') + 1)} on ${address}: ${details || String(cause)}${hint}`,
    { cause },
  );
}
