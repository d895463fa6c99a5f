import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runTool } from '#test/images/tool.ts';
import { disposeOnInterrupt } from './interrupt.ts';

/** A folder that is removed in the end, with whatever is still mounted below it. Its path is short: sockets live in it. */
export class TempFolder implements AsyncDisposable {
  readonly path: string;
  readonly #forget: () => void;

  private constructor(path: string) {
    this.path = path;
    this.#forget = disposeOnInterrupt(this);
  }

  static async create(name = 't'): Promise<TempFolder> {
    return new TempFolder(await mkdtemp(join(tmpdir(), `${name}-`)));
  }

  join(...parts: readonly string[]): string {
    return join(this.path, ...parts);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await unmountBelow(this.path);
    await rm(this.path, { recursive: true, force: true, maxRetries: 5 });
    this.#forget();
  }
}

/** Lazily unmounts all that is mounted at or below `folder`. */
export async function unmountBelow(folder: string): Promise<void> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  const paths = lines
    .map((line) =>
      (line.split(' ')[4] ?? '').replace(/\\(\d{3})/g, (_, octal: string) =>
        String.fromCharCode(Number.parseInt(octal, 8)),
      ),
    )
    .filter((path) => path === folder || path.startsWith(`${folder}/`));
  for (const path of paths.toReversed()) {
    await runTool('umount', ['-l', path], AbortSignal.timeout(30_000)).catch(() => {
      // Gone with the one it was mounted on.
    });
  }
}
