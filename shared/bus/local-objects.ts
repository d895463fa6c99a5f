import { mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { BUS_LIMITS, BusError, type ObjectStore } from './bus.ts';
import { cancelled } from './deadline.ts';
import { checkObjectName } from './subject.ts';

export function checkObjectSize(name: string, bytes: Uint8Array): void {
  if (bytes.length <= BUS_LIMITS.objectBytes) return;
  throw new BusError('too-large', `Cannot store ${name}: ${bytes.length} bytes, at most ${BUS_LIMITS.objectBytes}`);
}

/** Objects in memory, for a bus that is gone with its process. */
export class MemoryObjects implements ObjectStore {
  readonly #objects = new Map<string, Uint8Array>();

  async put(name: string, bytes: Uint8Array): Promise<void> {
    checkObjectName(name);
    checkObjectSize(name, bytes);
    if (!this.#objects.has(name)) this.#objects.set(name, Uint8Array.from(bytes));
  }

  async get(name: string): Promise<Uint8Array | undefined> {
    checkObjectName(name);
    return this.#objects.get(name);
  }

  async has(name: string): Promise<boolean> {
    checkObjectName(name);
    return this.#objects.has(name);
  }

  async remove(name: string): Promise<void> {
    checkObjectName(name);
    this.#objects.delete(name);
  }
}

/** Objects as files of one directory, published by rename. */
export class FileObjects implements ObjectStore {
  readonly #directory: string;
  #temporary = 0;

  constructor(directory: string) {
    this.#directory = directory;
  }

  async put(name: string, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    checkObjectSize(name, bytes);
    if (await this.has(name, signal)) return;
    await mkdir(this.#directory, { recursive: true });
    this.#temporary += 1;
    // A leading "~" is no name of an object.
    const temporary = join(this.#directory, `~${process.pid}-${this.#temporary}`);
    try {
      await writeFile(temporary, bytes, { signal, flush: true });
      await rename(temporary, this.#path(name));
    } catch (error) {
      await rm(temporary, { force: true });
      throw signal.aborted ? cancelled(signal, `store ${name}`) : failed('store', name, error);
    }
  }

  async get(name: string, signal: AbortSignal): Promise<Uint8Array | undefined> {
    try {
      return await readFile(this.#path(name), { signal });
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw signal.aborted ? cancelled(signal, `read ${name}`) : failed('read', name, error);
    }
  }

  async has(name: string, _signal: AbortSignal): Promise<boolean> {
    try {
      return (await stat(this.#path(name))).isFile();
    } catch (error) {
      if (isMissing(error)) return false;
      throw failed('look for', name, error);
    }
  }

  async remove(name: string): Promise<void> {
    await rm(this.#path(name), { force: true });
  }

  #path(name: string): string {
    checkObjectName(name);
    if (name === '.' || name === '..') throw new BusError('invalid', `Cannot name an object ${JSON.stringify(name)}`);
    return join(this.#directory, name);
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT';
}

function failed(verb: string, name: string, cause: unknown): BusError {
  if (cause instanceof BusError) return cause;
  return new BusError('unavailable', `Cannot ${verb} the object ${name}: ${(cause as Error).message}`, { cause });
}
