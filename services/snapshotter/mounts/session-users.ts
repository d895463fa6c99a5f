import { backingFile, isWithin, readMountTable, type MountInfo } from './mount-table.ts';

/** A mount whose readers need the session for as long as it is there. */
export interface SessionUser {
  readonly mount: MountInfo;
  /** Layer images that it reads through the session. */
  readonly images: readonly string[];
}

/** What hangs on the folder of layer images. */
export interface SessionUse {
  /** EROFS mounts of its files, copies included. */
  readonly images: readonly MountInfo[];
  /** Overlays that have them as layers, and copies of them elsewhere: root file systems of containers. */
  readonly users: readonly SessionUser[];
}

/** `folder` is the FUSE mount, or any folder that holds layer images. */
export async function sessionUse(folder: string, signal?: AbortSignal): Promise<SessionUse> {
  const table = await readMountTable(signal);
  const sources = new Map<MountInfo, string>();
  for (const mount of table) if (mount.type === 'erofs') sources.set(mount, await backingFile(mount));
  return sessionUseIn(table, (mount) => sources.get(mount) ?? mount.source, folder);
}

/**
 * The table is in the order of mounting, and an overlay keeps the layers that it found: one that was mounted before a layer's
 * complete image was mounted on top reads through the session for as long as it lives, a later one does not.
 *
 * @param sourceOf The file that an EROFS mount reads from.
 */
export function sessionUseIn(
  table: readonly MountInfo[],
  sourceOf: (mount: MountInfo) => string,
  folder: string,
): SessionUse {
  const images: MountInfo[] = [];
  const users: SessionUser[] = [];
  /** By target, as it is at this line of the table. */
  const sources = new Map<string, string>();
  const devices = new Set<string>();
  for (const mount of table) {
    if (mount.type === 'erofs') {
      const source = sourceOf(mount);
      const isCopy = devices.has(mount.device);
      devices.add(mount.device);
      if (!isCopy) sources.set(mount.target, source);
      if (!isWithin(source, folder)) continue;
      images.push(mount);
      if (isCopy) users.push({ mount, images: [source] });
    } else if (mount.type === 'overlay') {
      const needed = lowerLayers(mount)
        .map((layer) => sourceOfLayer(layer, sources))
        .filter((source) => source !== undefined && isWithin(source, folder));
      if (needed.length > 0)
        users.push({ mount, images: [...new Set(needed)].filter((source) => source !== undefined) });
    }
  }
  return { images, users };
}

/** The lower layers of an overlay, as whoever mounted it named them. */
export function lowerLayers(overlay: MountInfo): readonly string[] {
  return overlay.superOptions
    .split(',')
    .filter((option) => option.startsWith('lowerdir'))
    .flatMap((option) => option.slice(option.indexOf('=') + 1).split(':'))
    .filter((layer) => layer !== '');
}

/** Whether an overlay's layer lies on the mount at `target`: containerd may name layers relative to a folder above them. */
export function liesOn(layer: string, target: string): boolean {
  return isWithin(layer, target) || target.endsWith(`/${layer}`);
}

function sourceOfLayer(layer: string, sources: ReadonlyMap<string, string>): string | undefined {
  const exact = sources.get(layer);
  if (exact !== undefined) return exact;
  for (const [target, source] of sources) if (liesOn(layer, target)) return source;
  return undefined;
}
