import { statfs } from 'node:fs/promises';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { DiskSpace, FuseEvents } from './fuse/fuse-session.ts';
import type { LayerFile } from './fuse/layer-files.ts';

/** How often statfs's numbers are refreshed; they are asked for in a place that must not wait. */
const DISK_SPACE_MS = 5_000;
/** Lines kept until there is a logger; one that is full of errors tells as much. */
const MAX_EARLY_LINES = 100;

/** What the FUSE session says, to the log; kept until there is one, since the session serves before that is loaded. */
export class SessionEvents implements FuseEvents {
  readonly #folder: string;
  readonly #timer: NodeJS.Timeout;
  #space: DiskSpace = { totalBytes: 0, freeBytes: 0 };
  #early: [fields: object, message: string][] = [];
  #logger: Logger | undefined;

  /** `folder` is on the disk that `df` shows for the session. */
  constructor(folder: string) {
    this.#folder = folder;
    void this.#refresh();
    this.#timer = setInterval(() => void this.#refresh(), DISK_SPACE_MS).unref();
  }

  logTo(logger: Logger): void {
    this.#logger = logger;
    for (const [fields, message] of this.#early.splice(0)) logger.error(fields, message);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  diskSpace(): DiskSpace {
    return this.#space;
  }

  unknownFile(inode: bigint): void {
    this.#error(
      { inode: String(inode) },
      'The kernel has a layer image open that is not on disk any more: its readers get EIO',
    );
  }

  readFailed(file: LayerFile, offset: number, length: number, error: unknown): void {
    this.#error({ file: file.name, offset, length, err: error }, 'A read failed: its reader gets EIO');
  }

  #error(fields: object, message: string): void {
    if (this.#logger !== undefined) this.#logger.error(fields, message);
    else if (this.#early.length < MAX_EARLY_LINES) this.#early.push([fields, message]);
  }

  async #refresh(): Promise<void> {
    try {
      const { bsize, blocks, bavail } = await statfs(this.#folder);
      this.#space = { totalBytes: bsize * blocks, freeBytes: bsize * bavail };
    } catch {
      // The numbers stay as they were: nothing depends on them but `df`.
    }
  }
}
