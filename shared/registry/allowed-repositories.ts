import type { RepositoryName } from './reference.ts';

/**
 * Which repositories something is done for: `host[:port]` (all of it), `host[:port]/path` (this one), `host[:port]/path/*` (all
 * below it) or `*` (every one).
 */
export class AllowedRepositories {
  readonly #patterns: readonly string[];

  constructor(patterns: readonly string[]) {
    this.#patterns = patterns.map((pattern) => pattern.toLowerCase());
  }

  get isEmpty(): boolean {
    return this.#patterns.length === 0;
  }

  allows(repository: RepositoryName): boolean {
    return this.#patterns.some((pattern) => {
      if (pattern === '*' || pattern === repository) return true;
      if (pattern.endsWith('/*')) return repository.startsWith(pattern.slice(0, -1));
      return !pattern.includes('/') && repository.startsWith(`${pattern}/`);
    });
  }
}
