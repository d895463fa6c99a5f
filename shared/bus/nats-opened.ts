import { isNoResponder, isNotFound, type Link } from './nats-link.ts';

/** What is opened once for each connection (a bucket), and anew when it turned out to be gone. */
export class NatsOpened<T> {
  readonly #open: (link: Link) => Promise<T>;
  #last: { readonly link: Link; readonly opened: Promise<T> } | undefined;

  constructor(open: (link: Link) => Promise<T>) {
    this.#open = open;
  }

  async of(link: Link): Promise<T> {
    if (this.#last?.link !== link) {
      const last = { link, opened: this.#open(link) };
      last.opened.catch(() => {
        if (this.#last === last) this.#last = undefined;
      });
      this.#last = last;
    }
    return await this.#last.opened;
  }

  /** To be told of what went wrong with it: a server that lost its disk has to be asked to make it again. */
  failed(error: unknown): void {
    if (isNoResponder(error) || isNotFound(error)) this.#last = undefined;
  }
}
