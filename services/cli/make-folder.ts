import { mkdir } from 'node:fs/promises';
import { resolve } from 'node:path';

/**
 * Makes a folder and those above it, where they are missing: one after the other, since node's own `recursive` never comes back from file
 * systems that answer ENOENT, as /proc does. Does not tell whether the folder can be written, nor that it is one.
 *
 * @throws the file system's error
 */
export async function makeFolder(folder: string): Promise<void> {
  const parts = resolve(folder)
    .split('/')
    .filter((part) => part !== '');
  for (let count = 1; count <= parts.length; count++) {
    try {
      await mkdir(`/${parts.slice(0, count).join('/')}`);
    } catch (error) {
      const code = error instanceof Error && 'code' in error ? error.code : '';
      // EROFS comes before EEXIST where both are true; what is not there is said to whoever uses it.
      if (code !== 'EEXIST' && code !== 'EROFS') throw error;
    }
  }
}
