import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { BUS_LIMITS, BusError, type ObjectStore } from './bus.ts';
import { cancelled } from './deadline.ts';
import { checkObjectName } from './subject.ts';

/** `spaceBytes`: of all objects. @throws BusError `too-large` */
export function checkObjectSize(name: string, bytes: Uint8Array, spaceBytes: number): void {
  const most = Math.min(BUS_LIMITS.objectBytes, Math.floor(spaceBytes * BUS_LIMITS.objectRoom));
  if (bytes.length <= most) return;
  const space = most < BUS_LIMITS.objectBytes ? `, where all objects have ${spaceBytes}` : '';
  throw new BusError('too-large', `Cannot store ${name}: ${bytes.length} bytes, at most ${most}${space}`);
}

interface Sized {
  readonly name: string;
  readonly size: number;
}

/** Which objects to drop so that there is room for another one; `oldestFirst` are those that are there. */
export function toDrop(oldestFirst: readonly Sized[], comingBytes: number, spaceBytes: number): readonly string[] {
  let used = oldestFirst.reduce((sum, { size }) => sum + size, comingBytes);
  if (used <= spaceBytes) return [];
  const dropped: string[] = [];
  for (const { name, size } of oldestFirst) {
    if (used <= spaceBytes * BUS_LIMITS.objectRoom) break;
    dropped.push(name);
    used -= size;
  }
  return dropped;
}

/** Objects in memory, for a bus that is gone with its process. */
export class MemoryObjects implements ObjectStore {
  /** In the order in which they were put. */
  readonly #objects = new Map<string, Uint8Array>();
  readonly #spaceBytes: number;

  constructor(spaceBytes: number = BUS_LIMITS.allObjectBytes) {
    this.#spaceBytes = spaceBytes;
  }

  async put(name: string, bytes: Uint8Array): Promise<void> {
    checkObjectName(name);
    checkObjectSize(name, bytes, this.#spaceBytes);
    if (this.#objects.has(name)) return;
    const present = Array.from(this.#objects, ([each, { length }]) => ({ name: each, size: length }));
    for (const old of toDrop(present, bytes.length, this.#spaceBytes)) this.#objects.delete(old);
    this.#objects.set(name, Uint8Array.from(bytes));
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

/** Of files that are being written: no name of an object. */
const TEMPORARY = '~';

/** Objects as files of one directory, published by rename. One process at a time. */
export class FileObjects implements ObjectStore {
  readonly #directory: string;
  readonly #spaceBytes: number;
  #temporary = 0;
  /** Bytes of all files; undefined = not looked yet. */
  #used: number | undefined;

  constructor(directory: string, spaceBytes: number = BUS_LIMITS.allObjectBytes) {
    this.#directory = directory;
    this.#spaceBytes = spaceBytes;
  }

  async put(name: string, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    checkObjectSize(name, bytes, this.#spaceBytes);
    if (await this.has(name, signal)) return;
    this.#temporary += 1;
    const temporary = join(this.#directory, `${TEMPORARY}${process.pid}-${this.#temporary}`);
    try {
      await mkdir(this.#directory, { recursive: true });
      await this.#makeRoom(bytes.length);
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
    this.#used = undefined;
    await rm(this.#path(name), { force: true });
  }

  /** Looks at the files only when it may be short; a first time also removes what a killed process was writing. */
  async #makeRoom(comingBytes: number): Promise<void> {
    if (this.#used !== undefined && this.#used + comingBytes <= this.#spaceBytes) {
      this.#used += comingBytes;
      return;
    }
    const mine = `${TEMPORARY}${process.pid}-`;
    const present: { name: string; size: number; mtimeMs: number }[] = [];
    for (const name of await readdir(this.#directory)) {
      if (name.startsWith(mine)) continue;
      if (name.startsWith(TEMPORARY)) await rm(join(this.#directory, name), { force: true });
      const { size, mtimeMs } = await stat(join(this.#directory, name)).catch(() => ({ size: 0, mtimeMs: 0 }));
      if (!name.startsWith(TEMPORARY)) present.push({ name, size, mtimeMs });
    }
    present.sort((a, b) => a.mtimeMs - b.mtimeMs || (a.name < b.name ? -1 : 1));
    const dropped = new Set(toDrop(present, comingBytes, this.#spaceBytes));
    for (const name of dropped) await rm(join(this.#directory, name), { force: true });
    this.#used = present.reduce((sum, { name, size }) => sum + (dropped.has(name) ? 0 : size), comingBytes);
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
