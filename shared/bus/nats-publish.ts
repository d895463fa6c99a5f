import { headers } from 'nats';
import { BUS_LIMITS, BusError, type OutgoingEvent } from './bus.ts';
import { pause, within } from './deadline.ts';
import { isNoResponder, isNotFound, toBusError, type NatsLink } from './nats-link.ts';

/** A publish is tried again within this. */
const PUBLISH_MS = 10_000;
const RETRY_MS = 250;

/** Resolves once JetStream has it. Tried again over short losses; the id makes that safe. */
export async function publishToStream(
  natsLink: NatsLink,
  event: OutgoingEvent & { readonly notes?: Readonly<Record<string, string>> },
  signal: AbortSignal,
): Promise<{ readonly duplicate: boolean }> {
  const what = `publish to ${event.subject}`;
  const until = performance.now() + PUBLISH_MS;
  for (;;) {
    try {
      const link = await natsLink.streams(what, signal);
      const noted = headers();
      for (const [name, value] of Object.entries(event.notes ?? {})) noted.set(name, value);
      const published = link.js.publish(event.subject, event.payload, { msgID: event.id, headers: noted });
      const ack = await within(published, BUS_LIMITS.waitMs, AbortSignal.any([signal, link.gone]), what);
      return { duplicate: ack.duplicate };
    } catch (cause) {
      if (isNoResponder(cause) || isNotFound(cause)) natsLink.forgetStreams();
      const error = toBusError(cause, what);
      const lost = error.code === 'cancelled' && !signal.aborted;
      if ((!error.retryable && !lost) || performance.now() > until) {
        throw lost ? new BusError('unavailable', `Cannot ${what}: the connection to NATS was lost`, { cause }) : error;
      }
      await pause(RETRY_MS, signal);
    }
  }
}
