import { createReadStream } from 'node:fs';
import { mkdtemp, open, rm, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';

const READ_BYTES = 1024 * 1024;
/** Small writes are gathered: a writer hands on a few bytes at a time. */
const GATHER_BYTES = 1024 * 1024;

/** A blob that is kept on disk between being written and being uploaded, however large it is. */
export class SpoolFile implements AsyncDisposable {
  readonly folder: string;
  readonly #path: string;
  readonly #file: FileHandle;
  #gathered: Uint8Array[] = [];
  #gatheredBytes = 0;
  sizeBytes = 0;

  private constructor(folder: string, path: string, file: FileHandle) {
    this.folder = folder;
    this.#path = path;
    this.#file = file;
  }

  /** Makes a folder of its own in `parent`, which goes away with it. */
  static async create(parent: string): Promise<SpoolFile> {
    const folder = await mkdtemp(join(parent, 'kindling-convert-'));
    const path = join(folder, 'blob');
    return new SpoolFile(folder, path, await open(path, 'wx', 0o600));
  }

  /** Takes the bytes over: the caller must not change them afterwards. */
  async write(bytes: Uint8Array): Promise<void> {
    this.#gathered.push(bytes);
    this.#gatheredBytes += bytes.length;
    this.sizeBytes += bytes.length;
    if (this.#gatheredBytes >= GATHER_BYTES) await this.flush();
  }

  async flush(): Promise<void> {
    const parts = this.#gathered;
    this.#gathered = [];
    this.#gatheredBytes = 0;
    if (parts.length > 0) await this.#file.appendFile(Buffer.concat(parts));
  }

  /** The whole blob from its start; `flush` first. May be read more than once. */
  read(): AsyncIterable<Buffer> {
    return createReadStream(this.#path, { highWaterMark: READ_BYTES });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
    await rm(this.folder, { recursive: true, force: true });
  }
}
