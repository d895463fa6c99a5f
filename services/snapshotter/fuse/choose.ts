import { access, constants } from 'node:fs/promises';
import { release } from 'node:os';

export type FuseTransport = 'device' | 'native';

/** FUSE_NOTIFY_RESEND came with Linux 6.9: without it a reader whose request was under way waits for ever. */
const RESEND_SINCE = [6, 9] as const;

/**
 * `device` where the kernel can hand requests on to the next agent, else `native`. A setting forces either.
 * Distributions that carry the change back to an older kernel need the setting.
 */
export async function chooseTransport(setting: 'auto' | FuseTransport, kernel = release()): Promise<FuseTransport> {
  if (setting !== 'auto') return setting;
  if (!atLeast(kernel, RESEND_SINCE)) return 'native';
  const usable = await access('/dev/fuse', constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  );
  return usable ? 'device' : 'native';
}

function atLeast(kernel: string, [major, minor]: readonly [number, number]): boolean {
  const [, a, b] = /^(\d+)\.(\d+)/.exec(kernel) ?? [];
  const have = [Number(a ?? 0), Number(b ?? 0)] as const;
  return have[0] > major || (have[0] === major && have[1] >= minor);
}
