/** Values of the subset: what containerd's hosts.toml is written with. */
export type TomlValue = string | number | boolean | readonly TomlValue[] | TomlTable;
export interface TomlTable {
  readonly [key: string]: TomlValue;
}

export class TomlError extends Error {
  override readonly name = 'TomlError';
  readonly code = 'malformed';
}

/** Bytes of a document. */
const MAX_CHARS = 1024 * 1024;
const MAX_DEPTH = 16;

/**
 * Parses tables, bare, quoted and dotted keys, strings (basic, literal), integers, booleans, arrays and comments. Not:
 * arrays of tables, inline tables, multi-line strings, dates, floats. Keys keep the order of the document.
 *
 * @throws TomlError with the line.
 */
export function parseToml(text: string): TomlTable {
  if (text.length > MAX_CHARS) throw new TomlError(`Cannot parse TOML: longer than ${MAX_CHARS} characters`);
  return new Parser(text).document();
}

type Draft = Map<string, TomlValue | Draft>;

class Parser {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  document(): TomlTable {
    const root: Draft = new Map();
    let table = root;
    for (;;) {
      this.#skip(true);
      if (this.#at >= this.#text.length) return finish(root);
      if (this.#take('[')) {
        if (this.#peek() === '[') throw this.#error('arrays of tables are not supported');
        table = this.#descend(root, this.#key());
        this.#expect(']');
      } else {
        const key = this.#key();
        this.#expect('=');
        const last = key.pop() ?? '';
        const into = this.#descend(table, key);
        if (into.has(last)) throw this.#error(`${JSON.stringify(last)} is set twice`);
        into.set(last, this.#value(0));
      }
      this.#skip(false);
      if (this.#at < this.#text.length && this.#peek() !== '\n') throw this.#error('expected the end of the line');
    }
  }

  #descend(from: Draft, key: readonly string[]): Draft {
    let table = from;
    for (const part of key) {
      const next = table.get(part) ?? new Map();
      if (!(next instanceof Map)) throw this.#error(`${JSON.stringify(part)} is not a table`);
      table.set(part, next);
      table = next;
    }
    return table;
  }

  #key(): string[] {
    const parts: string[] = [];
    do {
      this.#skip(false);
      const quote = this.#peek();
      if (quote === '"' || quote === "'") parts.push(this.#string());
      else parts.push(this.#match(/[A-Za-z0-9_-]+/y, 'a key'));
      this.#skip(false);
    } while (this.#take('.'));
    if (parts.length > MAX_DEPTH) throw this.#error('nested too deep');
    return parts;
  }

  #value(depth: number): TomlValue {
    if (depth > MAX_DEPTH) throw this.#error('nested too deep');
    this.#skip(false);
    const start = this.#peek();
    if (start === '"' || start === "'") return this.#string();
    if (this.#take('[')) {
      const values: TomlValue[] = [];
      for (;;) {
        this.#skip(true);
        if (this.#take(']')) return values;
        values.push(this.#value(depth + 1));
        this.#skip(true);
        if (!this.#take(',')) {
          this.#expect(']');
          return values;
        }
      }
    }
    const word = this.#match(/true|false|[+-]?\d+/y, 'a string, integer, boolean or array');
    return word === 'true' || word === 'false' ? word === 'true' : Number(word);
  }

  #string(): string {
    if (this.#text.startsWith("'''", this.#at) || this.#text.startsWith('"""', this.#at)) {
      throw this.#error('multi-line strings are not supported');
    }
    if (this.#peek() === "'") return this.#match(/'[^'\n]*'/y, 'a closing quote').slice(1, -1);
    const quoted = this.#match(/"(?:[^"\\\n]|\\[btnfr"\\]|\\u[0-9A-Fa-f]{4})*"/y, 'a closed string with known escapes');
    return String(JSON.parse(quoted.replaceAll('\t', '\\t')));
  }

  #match(pattern: RegExp, wanted: string): string {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    if (found === undefined) throw this.#error(`expected ${wanted}`);
    this.#at += found.length;
    return found;
  }

  #skip(lines: boolean): void {
    const blank = lines ? /(?:[ \t\r\n]|#[^\n]*)*/y : /(?:[ \t\r]|#[^\n]*)*/y;
    this.#match(blank, '');
  }

  #peek(): string | undefined {
    return this.#text[this.#at];
  }

  #take(char: string): boolean {
    if (this.#text[this.#at] !== char) return false;
    this.#at++;
    return true;
  }

  #expect(char: string): void {
    this.#skip(false);
    if (!this.#take(char)) throw this.#error(`expected ${JSON.stringify(char)}`);
  }

  #error(what: string): TomlError {
    const line = this.#text.slice(0, this.#at).split('\n').length;
    return new TomlError(`Cannot parse TOML, line ${line}: ${what}`);
  }
}

function finish(draft: Draft): TomlTable {
  const entries = [...draft].map(([key, value]) => [key, value instanceof Map ? finish(value) : value] as const);
  return Object.assign(Object.create(null), Object.fromEntries(entries));
}
