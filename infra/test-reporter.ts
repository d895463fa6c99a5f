/** One line of JSON per finished test: what `infra/run-tests.ts` reads back. See `ReportedTest` there. */
import type { TestEvent } from 'node:test/reporters';

export interface ReportedTest {
  readonly name: string;
  readonly outcome: 'passed' | 'failed' | 'skipped';
  /** Why it was skipped, or the error with its stack. */
  readonly reason: string;
}

/** Longest part of an error that is shown: a diff of two trees can be megabytes. */
const REASON_CHARS = 8_000;

export default async function* testReporter(source: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  const path: string[] = [];
  for await (const event of source) {
    if (event.type === 'test:start') path.splice(event.data.nesting, path.length, event.data.name);
    if (event.type !== 'test:pass' && event.type !== 'test:fail') continue;
    const { name, nesting, skip, todo, details } = event.data;
    if (details.type === 'suite' && event.type === 'test:pass') continue;
    const title = [...path.slice(0, nesting), name].join(' > ');
    let outcome: ReportedTest['outcome'] = 'passed';
    let reason = '';
    if (skip !== undefined || todo !== undefined) {
      outcome = 'skipped';
      reason = String(skip ?? todo);
    } else if (event.type === 'test:fail') {
      const error = event.data.details.error;
      // A parent fails because of its children, which are reported on their own.
      if ('failureType' in error && error.failureType === 'subtestsFailed') continue;
      outcome = 'failed';
      reason = describe(error.cause ?? error).slice(0, REASON_CHARS);
    }
    yield `${JSON.stringify({ name: title, outcome, reason } satisfies ReportedTest)}\n`;
  }
}

function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  let text = error.stack ?? `${error.name}: ${error.message}`;
  if (!text.includes(error.message)) text = `${error.message}\n${text}`;
  if (error instanceof AggregateError) text += `\n${error.errors.map(describe).join('\n')}`;
  return error.cause === undefined ? text : `${text}\n  caused by ${describe(error.cause)}`;
}
