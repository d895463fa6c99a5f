/** Closed set of reasons why a registry did not give what was asked. */
export type RegistryErrorCode =
  | 'unauthorized'
  | 'not-found'
  | 'unreachable'
  | 'rate-limited'
  | 'bad-answer'
  | 'digest-mismatch'
  | 'too-large'
  | 'refused'
  | 'cancelled';

export interface RegistryErrorDetails {
  readonly host: string;
  /** Path of the repository on its host; undefined where the request is about none. */
  readonly repository?: string | undefined;
  /** HTTP status of the answer; undefined when there was none. */
  readonly status?: number | undefined;
  /** Trying again later may work. Default: by code (`unreachable` and `rate-limited`). */
  readonly retryable?: boolean | undefined;
  /** How long the registry asked us to wait. */
  readonly retryAfterMs?: number | undefined;
  readonly cause?: unknown;
}

/** The message says what was tried, on which host and repository, the status, and what to do. */
export class RegistryError extends Error {
  override readonly name = 'RegistryError';
  readonly code: RegistryErrorCode;
  readonly host: string;
  readonly repository: string | undefined;
  readonly status: number | undefined;
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;

  constructor(code: RegistryErrorCode, message: string, details: RegistryErrorDetails) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.host = details.host;
    this.repository = details.repository;
    this.status = details.status;
    this.retryable = details.retryable ?? (code === 'unreachable' || code === 'rate-limited');
    this.retryAfterMs = details.retryAfterMs;
  }
}
