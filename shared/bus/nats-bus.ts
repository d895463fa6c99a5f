import type { Bus } from './bus.ts';
import { NatsClaims } from './nats-claims.ts';
import { NatsEventLog } from './nats-event-log.ts';
import { NatsLink, type NatsOptions } from './nats-link.ts';
import { NatsMessages } from './nats-messages.ts';
import { NatsObjects } from './nats-objects.ts';

/**
 * The bus of a cluster: JetStream for what must last, core NATS for the rest. Made at once, also with no server there:
 * calls then wait a bounded time, consumers and subscriptions begin when it comes.
 */
export class NatsBus implements Bus {
  readonly events: NatsEventLog;
  readonly messages: NatsMessages;
  readonly objects: NatsObjects;
  readonly claims: NatsClaims;
  readonly #link: NatsLink;

  constructor(options: NatsOptions) {
    this.#link = new NatsLink(options);
    this.events = new NatsEventLog(this.#link);
    this.messages = new NatsMessages(this.#link);
    this.objects = new NatsObjects(this.#link);
    this.claims = new NatsClaims(this.#link);
  }

  connected(): boolean {
    return this.#link.connected();
  }

  onConnected(callback: () => void): Disposable {
    return this.#link.onLink(callback);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.events[Symbol.asyncDispose]();
    await this.#link[Symbol.asyncDispose]();
  }
}
