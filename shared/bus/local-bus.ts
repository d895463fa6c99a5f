import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Bus, type Claim, type Claims, type ObjectStore } from './bus.ts';
import { LocalEventLog } from './local-event-log.ts';
import { LocalMessages } from './local-messages.ts';
import { FileObjects, MemoryObjects } from './local-objects.ts';
import { checkName } from './subject.ts';

/** The bus of a single process: nothing to install, same contract. */
export class LocalBus implements Bus {
  readonly events: LocalEventLog;
  readonly messages = new LocalMessages();
  readonly objects: ObjectStore;
  readonly claims: Claims = new LocalClaims();

  /**
   * `directory`: where events and objects are kept over restarts; one process at a time. Without it all is in memory. `objectBytes`:
   * space for all objects.
   */
  constructor(directory?: string, { objectBytes }: { readonly objectBytes?: number } = {}) {
    if (directory !== undefined) mkdirSync(directory, { recursive: true, mode: 0o700 });
    this.events = new LocalEventLog(directory === undefined ? ':memory:' : join(directory, 'events.sqlite'));
    this.objects =
      directory === undefined
        ? new MemoryObjects(objectBytes)
        : new FileObjects(join(directory, 'objects'), objectBytes);
  }

  connected(): boolean {
    return true;
  }

  onConnected(callback: () => void): Disposable {
    let wanted = true;
    queueMicrotask(() => {
      if (wanted) callback();
    });
    return {
      [Symbol.dispose]() {
        wanted = false;
      },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.events[Symbol.asyncDispose]();
  }
}

class LocalClaims implements Claims {
  readonly #held = new Set<string>();

  async claim(name: string): Promise<Claim | undefined> {
    checkName(name, 'the name of a claim');
    if (this.#held.has(name)) return undefined;
    this.#held.add(name);
    let held = true;
    return {
      // Never lost: it cannot outlive its holder.
      lost: new AbortController().signal,
      [Symbol.asyncDispose]: async () => {
        if (held) this.#held.delete(name);
        held = false;
      },
    };
  }
}
