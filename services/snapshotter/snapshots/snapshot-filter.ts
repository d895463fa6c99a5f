import { SNAPSHOT_LIMITS, type Snapshot } from './snapshot.ts';
import { SnapshotError } from './snapshot-error.ts';

/**
 * containerd's filter language (its package `filters`):
 *
 *     filter   = selector { "," selector }                      all of them must hold
 *     selector = path [ operator value ]                        alone: the field is there
 *     path     = field { "." field }, each a word or quoted     name, parent, kind, labels.<key>
 *     operator = "==" | "!=" | "~="                             the last one: a regular expression that is found in it
 *     value    = word | quoted ("…", or between two equal | or /)
 *
 * Of several filters one must hold; no filter matches everything.
 */
export type SnapshotFilter = (snapshot: Pick<Snapshot, 'name' | 'parent' | 'kind' | 'labels'>) => boolean;

/** @throws SnapshotError `invalid` that shows where the filter is wrong. */
export function parseFilters(filters: readonly string[]): SnapshotFilter {
  if (filters.length > SNAPSHOT_LIMITS.filters) {
    throw new SnapshotError('invalid', `Cannot list snapshots: more than ${SNAPSHOT_LIMITS.filters} filters`);
  }
  const parsed = filters.map((text) => parseFilter(text));
  return (snapshot) => parsed.length === 0 || parsed.some((filter) => filter(snapshot));
}

function parseFilter(text: string): SnapshotFilter {
  if (text.length > SNAPSHOT_LIMITS.filterBytes) {
    throw new SnapshotError('invalid', `Cannot parse filter: longer than ${SNAPSHOT_LIMITS.filterBytes} characters`);
  }
  if (text === '') return () => true;
  const scanner = new Scanner(text);
  const selectors: SnapshotFilter[] = [];
  do selectors.push(parseSelector(scanner));
  while (scanner.take(','));
  if (!scanner.atEnd()) scanner.fail('"," or the end of the filter is expected');
  return (snapshot) => selectors.every((selector) => selector(snapshot));
}

function parseSelector(scanner: Scanner): SnapshotFilter {
  const path = [scanner.field()];
  while (scanner.take('.')) path.push(scanner.field());
  const operator = scanner.operator();
  if (operator === undefined) return (snapshot) => fieldOf(snapshot, path) !== undefined;
  const value = scanner.value(operator === '~=');
  switch (operator) {
    case '==':
      return (snapshot) => fieldOf(snapshot, path) === value;
    case '!=':
      return (snapshot) => fieldOf(snapshot, path) !== value;
    case '~=': {
      let pattern: RegExp;
      try {
        pattern = new RegExp(value);
      } catch {
        return scanner.fail(`${JSON.stringify(value)} is no regular expression`);
      }
      return (snapshot) => {
        const field = fieldOf(snapshot, path);
        return field !== undefined && pattern.test(field);
      };
    }
  }
}

/** undefined = not there. */
function fieldOf(snapshot: Parameters<SnapshotFilter>[0], path: readonly string[]): string | undefined {
  const [first, ...rest] = path;
  if (first === 'labels') {
    const key = rest.join('.');
    return Object.hasOwn(snapshot.labels, key) ? snapshot.labels[key] : undefined;
  }
  if (rest.length > 0) return undefined;
  if (first === 'name') return snapshot.name;
  if (first === 'parent') return snapshot.parent;
  if (first === 'kind') return snapshot.kind;
  return undefined;
}

const WORD = /[A-Za-z0-9_][A-Za-z0-9_]*/y;
const BARE_VALUE = /[^\s,]+/y;
const SPACE = /\s*/y;
const DOUBLE_QUOTED = /"(?:[^"\\\n]|\\.)*"/y;
const FENCED = /\/(?:[^/\\]|\\.)*\/|\|(?:[^|\\]|\\.)*\|/y;
const ESCAPES: Readonly<Record<string, string>> = {
  a: '\x07',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
  v: '\v',
  '\\': '\\',
  '"': '"',
  "'": "'",
};

class Scanner {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  atEnd(): boolean {
    this.#skipSpace();
    return this.#at >= this.#text.length;
  }

  take(token: string): boolean {
    this.#skipSpace();
    if (!this.#text.startsWith(token, this.#at)) return false;
    this.#at += token.length;
    return true;
  }

  field(): string {
    return this.#quoted() ?? this.#match(WORD) ?? this.fail('the name of a field is expected');
  }

  operator(): '==' | '!=' | '~=' | undefined {
    for (const operator of ['==', '!=', '~='] as const) if (this.take(operator)) return operator;
    return undefined;
  }

  value(isPattern: boolean): string {
    const quoted = this.#quoted();
    if (quoted !== undefined) return quoted;
    if (isPattern) {
      const fenced = this.#match(FENCED);
      // Only the fence itself needs an escape of its own; all others are the regular expression's.
      if (fenced !== undefined) return fenced.slice(1, -1).replaceAll(`\\${fenced.charAt(0)}`, fenced.charAt(0));
      if (/^[/|]/.test(this.#text.slice(this.#at))) return this.fail('the closing / or | is missing');
    }
    return this.#match(BARE_VALUE) ?? this.fail('a value is expected');
  }

  fail(problem: string): never {
    throw new SnapshotError(
      'invalid',
      `Cannot parse filter ${JSON.stringify(this.#text.slice(0, 200))} at ${this.#at}: ${problem}`,
    );
  }

  #skipSpace(): void {
    this.#match(SPACE);
  }

  #quoted(): string | undefined {
    this.#skipSpace();
    if (this.#text[this.#at] !== '"') return undefined;
    const whole = this.#match(DOUBLE_QUOTED) ?? this.fail('a closing quote is missing');
    return whole.slice(1, -1).replaceAll(/\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)/g, (_, escape: string) => {
      if (escape.length > 1) return String.fromCharCode(Number.parseInt(escape.slice(1), 16));
      return ESCAPES[escape] ?? this.fail(`\\${escape} is no escape`);
    });
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    if (found !== undefined) this.#at += found.length;
    return found;
  }
}
