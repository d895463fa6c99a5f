import { close as closeFd, closeSync, readlinkSync, readSync } from 'node:fs';
import koffi from 'koffi';

/**
 * fanotify(7) event, native byte order:
 *
 * | offset | bytes | what |
 * |---|---|---|
 * | 0 | 4 | length of this event |
 * | 4 | 1 | version, 3 |
 * | 5 | 1 | reserved |
 * | 6 | 2 | length of the metadata, 24 |
 * | 8 | 8 | mask |
 * | 16 | 4 | descriptor of the file, ours to close; negative = none |
 * | 20 | 4 | process |
 */
const METADATA_BYTES = 24;
const VERSION = 3;

const FAN_CLOEXEC = 0x1;
const FAN_NONBLOCK = 0x2;
const FAN_UNLIMITED_QUEUE = 0x10;
const FAN_MARK_ADD = 0x1;
const FAN_MARK_FILESYSTEM = 0x100;
const FAN_OPEN = 0x20;
const FAN_OPEN_EXEC = 0x1000;
const O_LARGEFILE_CLOEXEC = 0o100000 | 0o2000000;
const AT_FDCWD = -100;

/** The queue is emptied so often; it has no bound of its own. */
const DRAIN_MS = 20;
const BUFFER_BYTES = 170 * METADATA_BYTES;
/** Different files of a start; the largest real ones open some thousands. */
const MAX_FILES = 200_000;

export class RecordError extends Error {
  override readonly name = 'RecordError';
  readonly code = 'unsupported';
}

/**
 * Records which files of one file system are opened, by whomever and in whatever mount namespace, in the order of their
 * first opening. Needs CAP_SYS_ADMIN.
 */
export class OpenRecorder implements Disposable {
  readonly #fd: number;
  readonly #timer: NodeJS.Timeout;
  readonly #buffer = Buffer.allocUnsafe(BUFFER_BYTES);
  readonly #files = new Set<string>();
  #isOpen = true;

  /** @param path any path on the file system. @throws RecordError */
  constructor(path: string) {
    const libc = koffi.load(null);
    const init = libc.func('int fanotify_init(uint flags, uint eventFlags)');
    const mark = libc.func('int fanotify_mark(int fd, uint flags, uint64_t mask, int dirfd, const char *path)');
    const fd = Number(init(FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE, O_LARGEFILE_CLOEXEC));
    if (fd < 0) {
      throw new RecordError(
        `Cannot record what the start reads: fanotify is not allowed (errno ${koffi.errno()}); run this as root`,
      );
    }
    if (Number(mark(fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN | FAN_OPEN_EXEC, AT_FDCWD, path)) < 0) {
      const errno = koffi.errno();
      closeSync(fd);
      throw new RecordError(
        `Cannot record what the start reads: the kernel does not watch the container's files (errno ${errno})`,
      );
    }
    this.#fd = fd;
    this.#timer = setInterval(() => this.#drain(), DRAIN_MS);
    this.#timer.unref();
  }

  /** Paths from the file system's root, without a leading slash, in the order of their first opening. */
  files(): readonly string[] {
    if (this.#isOpen) this.#drain();
    return [...this.#files];
  }

  [Symbol.dispose](): void {
    if (!this.#isOpen) return;
    clearInterval(this.#timer);
    this.#isOpen = false;
    // Closing waits for nobody, but what it drops may be on a file system that is slow: not on this thread.
    closeFd(this.#fd, () => {});
  }

  #drain(): void {
    for (;;) {
      let length: number;
      try {
        length = readSync(this.#fd, this.#buffer);
      } catch (cause) {
        // Nothing more (EAGAIN); or a file that cannot be opened any more, whose event is gone with that.
        const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
        if (code === 'ENXIO' || code === 'ENOENT' || code === 'ESTALE') continue;
        return;
      }
      if (length < METADATA_BYTES) return;
      for (let at = 0; at + METADATA_BYTES <= length; ) {
        const eventBytes = this.#buffer.readUInt32LE(at);
        if (this.#buffer[at + 4] === VERSION) this.#take(this.#buffer.readInt32LE(at + 16));
        at += Math.max(METADATA_BYTES, eventBytes);
      }
    }
  }

  #take(fd: number): void {
    if (fd < 0) return;
    try {
      const path = readlinkSync(`/proc/self/fd/${fd}`);
      // A file that was made and removed since is none of the image's.
      if (!path.endsWith(' (deleted)') && this.#files.size < MAX_FILES) this.#files.add(path.replace(/^\/+/, ''));
    } catch {
      // Its name is too long to be read back.
    } finally {
      closeSync(fd);
    }
  }
}
