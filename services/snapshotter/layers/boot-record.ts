import { open, readFile, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';

const BOOT_ID = '/proc/sys/kernel/random/boot_id';

/**
 * Whether what the caches say of themselves may be believed. A killed process loses nothing, since what it wrote is in the
 * page cache; a killed machine may have lost any of it. So the caches are believed within one boot, and after a shutdown
 * that said that everything is on disk.
 */
export class BootRecord {
  readonly #path: string;
  readonly #bootId: string;
  /** False after an unclean boot: every span must be verified again. */
  readonly trusted: boolean;

  /** The record says already what `markRunning` would write: an agent was killed, and readers wait for this one. */
  readonly #isRunning: boolean;

  private constructor(path: string, bootId: string, trusted: boolean, isRunning: boolean) {
    this.#path = path;
    this.#bootId = bootId;
    this.trusted = trusted;
    this.#isRunning = isRunning;
  }

  static async read(path: string, signal: AbortSignal, bootIdPath = BOOT_ID): Promise<BootRecord> {
    const bootId = (await readFile(bootIdPath, { encoding: 'utf8', signal })).trim();
    let trusted = false;
    let isRunning = false;
    try {
      const said: unknown = JSON.parse(await readFile(path, { encoding: 'utf8', signal }));
      if (isRecord(said)) {
        trusted = said.clean || said.bootId === bootId;
        isRunning = !said.clean && said.bootId === bootId;
      }
    } catch {
      signal.throwIfAborted();
      // No record, or one that a power loss has torn: not trusted.
    }
    return new BootRecord(path, bootId, trusted, isRunning);
  }

  /** To be called once what is not trusted has been marked so on disk, before the first span is stored. */
  async markRunning(): Promise<void> {
    if (this.#isRunning) {
      // It may have been killed between renaming the record and this, which costs nothing where it was not.
      await syncFolder(this.#path);
      return;
    }
    try {
      await this.#write(false);
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && (error.code === 'ENOSPC' || error.code === 'EDQUOT'))) {
        throw error;
      }
      // What is on a full disk can still be served, and no record is one that nobody trusts.
      await rm(this.#path, { force: true });
      await syncFolder(this.#path);
    }
  }

  /** To be called once every cache file is synced, and nothing is written any more. */
  async markClean(): Promise<void> {
    await this.#write(true);
  }

  async #write(clean: boolean): Promise<void> {
    const next = `${this.#path}.next`;
    await using file = await open(next, 'w', 0o600);
    await file.writeFile(JSON.stringify({ bootId: this.#bootId, clean }));
    await file.sync();
    await rename(next, this.#path);
    await syncFolder(this.#path);
  }
}

/** Not by a schema: who takes over from a killed agent reads this before it has loaded what schemas take. */
function isRecord(said: unknown): said is { readonly bootId: string; readonly clean: boolean } {
  if (typeof said !== 'object' || said === null || !('bootId' in said) || !('clean' in said)) return false;
  return typeof said.bootId === 'string' && typeof said.clean === 'boolean';
}

async function syncFolder(path: string): Promise<void> {
  await using folder = await open(dirname(path), 'r');
  await folder.sync();
}
