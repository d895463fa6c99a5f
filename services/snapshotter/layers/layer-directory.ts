import { randomBytes } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm, writeFile, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { digestOfHex, hexOf, type Digest } from '#shared/digest/digest.ts';
import { LAYER_FILES } from './layer-folder.ts';
import { parseLayerRecord, type LayerRecord } from './layer-record.ts';
import { Residency } from './residency.ts';

/** Folders that are being made or taken away; whatever is left of them at a start is removed. */
const TEMPORARY = '.tmp-';
const HEX = /^[0-9a-f]{64}$/;

export interface LoadedLayer {
  readonly record: LayerRecord;
  readonly residency: Residency;
  readonly suspect: Residency | undefined;
  /** Open for reading and writing; the caller closes it. */
  readonly image: FileHandle;
  /** Bytes that the image occupies. */
  readonly diskBytes: number;
}

/** The layers on this node's disk. Folders appear and vanish by rename, so what is there is whole. */
export class LayerDirectory {
  readonly root: string;

  constructor(root: string) {
    this.root = root;
  }

  path(layer: Digest): string {
    return join(this.root, hexOf(layer));
  }

  file(layer: Digest, file: keyof typeof LAYER_FILES): string {
    return join(this.path(layer), LAYER_FILES[file]);
  }

  /** Layers found; leftovers of an interrupted run are removed. */
  async list(signal: AbortSignal): Promise<readonly Digest[]> {
    await mkdir(this.root, { recursive: true, mode: 0o700 });
    const names = await readdir(this.root);
    signal.throwIfAborted();
    const leftovers = names.filter((name) => name.startsWith(TEMPORARY));
    await Promise.all(leftovers.map((name) => rm(join(this.root, name), { recursive: true, force: true })));
    return names.filter((name) => HEX.test(name)).map(digestOfHex);
  }

  /** A new empty folder in which a layer is made. */
  async begin(): Promise<string> {
    const path = join(this.root, `${TEMPORARY}${randomBytes(8).toString('hex')}`);
    await mkdir(path, { recursive: true, mode: 0o700 });
    return path;
  }

  /** Makes a folder from `begin` the layer's, in place of an older one. */
  async publish(temporary: string, record: LayerRecord): Promise<void> {
    await writeFile(join(temporary, LAYER_FILES.record), JSON.stringify(record), { mode: 0o600 });
    await this.remove(record.layer);
    await rename(temporary, this.path(record.layer));
  }

  /** Replaces the record. A reader sees the old one or the new one. */
  async writeRecord(record: LayerRecord): Promise<void> {
    const path = this.file(record.layer, 'record');
    const next = `${path}.next`;
    await writeFile(next, JSON.stringify(record), { mode: 0o600 });
    await rename(next, path);
  }

  /**
   * @param trusted False after an unclean boot: then all that was resident becomes suspect, on disk too, before this resolves.
   * @throws LayerRecordError or a file-system error: the folder cannot be used.
   */
  async load(layer: Digest, trusted: boolean, signal: AbortSignal): Promise<LoadedLayer> {
    const text = await readFile(this.file(layer, 'record'), { encoding: 'utf8', signal });
    const record = parseLayerRecord(text, layer);
    const { spanCount } = record;
    let residency = await this.#readBitmap(this.file(layer, 'residency'), spanCount);
    let suspect = await this.#readBitmap(this.file(layer, 'suspect'), spanCount);
    const image = await open(this.file(layer, 'image'), 'r+');
    try {
      const { size, blocks } = await image.stat();
      if (size !== record.imageSize) {
        // Cut short by somebody. What is behind the cut is gone, and of the rest nobody can say.
        await image.truncate(record.imageSize);
      }
      if ((!trusted || size !== record.imageSize) && residency !== undefined) {
        suspect = merge(spanCount, residency, suspect);
        await writeFile(this.file(layer, 'suspect'), suspect.toBytes(), { mode: 0o600 });
        residency = new Residency(spanCount);
        await writeFile(this.file(layer, 'residency'), residency.toBytes(), { mode: 0o600 });
      }
      return {
        record,
        residency: residency ?? new Residency(spanCount),
        suspect,
        image,
        diskBytes: blocks * 512,
      };
    } catch (error) {
      await image.close();
      throw error;
    }
  }

  /** To be called after the data of every span in it has been written. */
  async writeResidency(residency: Residency, layer: Digest): Promise<void> {
    // Truncating first would lose all of it to a crash in between; the length never changes.
    await using file = await open(this.file(layer, 'residency'), 'r+');
    const bytes = residency.toBytes();
    await file.write(bytes, 0, bytes.length, 0);
  }

  /** Nothing is suspect any more. */
  async clearSuspect(layer: Digest): Promise<void> {
    await rm(this.file(layer, 'suspect'), { force: true });
  }

  /** Removes the layer's folder, if there is one. */
  async remove(layer: Digest): Promise<void> {
    const doomed = join(this.root, `${TEMPORARY}${randomBytes(8).toString('hex')}`);
    try {
      await rename(this.path(layer), doomed);
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return;
      throw error;
    }
    await rm(doomed, { recursive: true, force: true });
  }

  async #readBitmap(path: string, spanCount: number): Promise<Residency | undefined> {
    try {
      return new Residency(spanCount, await readFile(path));
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
      throw error;
    }
  }
}

function merge(spanCount: number, a: Residency, b: Residency | undefined): Residency {
  const both = new Residency(spanCount, a.toBytes());
  if (b !== undefined) for (let span = 0; span < spanCount; span++) if (b.has(span)) both.add(span);
  return both;
}
