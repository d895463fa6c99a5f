import { writeFile } from 'node:fs/promises';
import { runTool } from '#test/images/tool.ts';

/** Drops the machine's clean page cache, dentries and inodes. Needs root. */
export async function dropCaches(signal: AbortSignal): Promise<void> {
  await runTool('sync', [], signal);
  await writeFile('/proc/sys/vm/drop_caches', '3\n', { signal });
}
