import { STRUCTURED } from '#shared/events/cloud-event.ts';
import { toBus, type KindlingEvent } from '#shared/events/image-events.ts';

/** Longer than a gateway waits for its bus. */
const ANSWER_MS = 30_000;

export class GatewayError extends Error {
  override readonly name = 'GatewayError';
  readonly code: 'unreachable' | 'refused' | 'invalid';
  constructor(code: GatewayError['code'], message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Sends an event as a platform would. `gateway`: its URL without a path. @throws GatewayError */
export async function sendToGateway(
  gateway: string,
  token: string,
  event: KindlingEvent,
  signal: AbortSignal,
): Promise<void> {
  if (!/^https?:\/\//.test(gateway) || !URL.canParse(gateway)) {
    throw new GatewayError('invalid', `Cannot send to ${gateway}: the gateway is a URL such as http://127.0.0.1:8460`);
  }
  const url = new URL('/v1/events', gateway);
  let response: Response;
  try {
    response = await fetch(url, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': STRUCTURED },
      body: Uint8Array.from(toBus(event, new Date()).payload),
      signal: AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS)]),
    });
  } catch (cause) {
    signal.throwIfAborted();
    throw new GatewayError('unreachable', `Cannot reach the gateway at ${url.origin}: does it run there?`, { cause });
  }
  const text = await response.text();
  if (response.ok) return;
  const code = response.status === 503 ? 'unreachable' : 'refused';
  throw new GatewayError(
    code,
    `The gateway at ${url.origin} answered ${response.status}: ${text.slice(0, 500).trim()}`,
  );
}
