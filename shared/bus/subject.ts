import { BusError } from './bus.ts';

const SUBJECT = /^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$/;
const PATTERN = /^([A-Za-z0-9_-]+|\*)(\.([A-Za-z0-9_-]+|\*))*(\.>)?$/;
const NAME = /^[A-Za-z0-9_-]{1,128}$/;
const OBJECT_NAME = /^[A-Za-z0-9_.-]{1,200}$/;
const MAX_SUBJECT = 256;

/** @throws BusError `invalid`: what we publish to has no wildcard and no odd character. */
export function checkSubject(subject: string): void {
  if (subject.length > MAX_SUBJECT || !SUBJECT.test(subject)) {
    throw new BusError(
      'invalid',
      `Cannot publish to ${JSON.stringify(subject)}: not a subject such as "kindling.events.image.pushed"`,
    );
  }
}

export function checkPattern(pattern: string): void {
  if (pattern.length > MAX_SUBJECT || !PATTERN.test(pattern)) {
    throw new BusError(
      'invalid',
      `Cannot subscribe to ${JSON.stringify(pattern)}: not a subject; "*" stands for one part, a last ">" for the rest`,
    );
  }
}

/** Of consumers, queues and claims. */
export function checkName(name: string, what: string): void {
  if (!NAME.test(name)) {
    throw new BusError(
      'invalid',
      `Cannot use ${JSON.stringify(name)} as ${what}: letters, digits, "-" and "_" only, at most 128`,
    );
  }
}

export function checkObjectName(name: string): void {
  if (!OBJECT_NAME.test(name)) {
    throw new BusError(
      'invalid',
      `Cannot name an object ${JSON.stringify(name)}: letters, digits, ".", "-" and "_" only, at most 200`,
    );
  }
}

/** Whether NATS would deliver `subject` to a subscription of `pattern`. */
export function matches(pattern: string, subject: string): boolean {
  const wanted = pattern.split('.');
  const parts = subject.split('.');
  for (const [i, want] of wanted.entries()) {
    if (want === '>') return parts.length > i;
    if (parts[i] === undefined || (want !== '*' && want !== parts[i])) return false;
  }
  return parts.length === wanted.length;
}
