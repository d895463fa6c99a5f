import { z } from 'zod';
import type { DeadLetter } from '#shared/bus/bus.ts';
import { parseStructured } from './cloud-event.ts';

const SUBJECTS = 'kindling.events.';

/** A dead letter as an operator sees it. */
export const deadLetterView = z.object({
  id: z.string(),
  atMs: z.number(),
  /** Who could not handle it. */
  consumer: z.string(),
  /** Of the event, such as `image.pushed`. */
  type: z.string(),
  /** Undefined where the event is none of ours. */
  image: z.string().optional(),
  attempts: z.number(),
  reason: z.string(),
});
export type DeadLetterView = z.infer<typeof deadLetterView>;

/** What an event is about, as far as it can be read: that it could not be may be why it died. */
export function viewOfDeadLetter(letter: DeadLetter): DeadLetterView {
  const { id, atMs, consumer, subject, attempts, reason, payload } = letter;
  const type = subject.startsWith(SUBJECTS) ? subject.slice(SUBJECTS.length) : subject;
  const view = { id, atMs, consumer, type, attempts, reason };
  const image = imageOf(payload);
  return image === undefined ? view : { ...view, image };
}

function imageOf(payload: Uint8Array): string | undefined {
  try {
    const { data } = parseStructured(payload);
    return z.object({ image: z.string().max(1024) }).parse(data).image;
  } catch {
    return undefined;
  }
}
