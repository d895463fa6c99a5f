import { closeSync, existsSync, fstatSync, openSync, readdirSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { parseSpanTable, SPAN_MAP_HEADER_BYTES, spanTableBytes } from '#shared/layer/span-map-file.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import type { LayerFile, LayerFiles } from '../fuse/layer-files.ts';
import { BootRecord } from './boot-record.ts';
import { imageInodeOf, imageNameOf, LAYER_FILES } from './layer-folder.ts';
import { Residency } from './residency.ts';

const HEX = /^[0-9a-f]{64}$/;

interface FoundLayer extends LayerFile {
  readonly folder: string;
  readonly spanCount: number;
}

/** What serving from the disk takes. */
interface OpenLayer {
  readonly fd: number;
  readonly residency: Residency;
  /** undefined where every span is here. */
  readonly map: Pick<SpanMap, 'spansOf'> | undefined;
}

/**
 * The layers on the disk as the last agent left them, only to read what is there: for the moment between the start of an agent and
 * its LayerStore, while readers wait. Changes nothing, and needs next to nothing loaded. What is not here, and what cannot be
 * told, waits for `handOver`, after which everything goes to the store.
 *
 * Reads the disk synchronously, so that each request is answered in the turn in which it comes: the loop is busy with loading
 * modules in that moment, and a reader would wait for that at each turn more.
 */
export class FoundLayers implements LayerFiles {
  readonly #byName: ReadonlyMap<string, FoundLayer>;
  readonly #byInode: ReadonlyMap<bigint, FoundLayer>;
  readonly #open = new Map<bigint, OpenLayer | undefined>();
  readonly #handedOver = Promise.withResolvers<LayerFiles>();
  /** Reads that wait, or did, for `handOver`. */
  readonly #handedOn = new Set<Promise<unknown>>();
  #next: LayerFiles | undefined;
  #served = 0;

  private constructor(layers: readonly FoundLayer[]) {
    this.#byName = new Map(layers.map((layer) => [layer.name, layer]));
    this.#byInode = new Map(layers.map((layer) => [layer.inode, layer]));
  }

  /** undefined where what is there must be verified first: after an unclean boot, which is no matter of a moment. */
  static async find(dataDir: string, signal: AbortSignal): Promise<FoundLayers | undefined> {
    const { trusted } = await BootRecord.read(join(dataDir, 'boot.json'), signal);
    return trusted ? new FoundLayers(findIn(join(dataDir, 'layers'))) : undefined;
  }

  /** Reads answered so far without the store. */
  get served(): number {
    return this.#served;
  }

  /** From now on `files` serves, also what waits already. */
  handOver(files: LayerFiles): void {
    this.#next = files;
    this.#handedOver.resolve(files);
    for (const layer of this.#open.values()) if (layer !== undefined) closeSync(layer.fd);
    this.#open.clear();
  }

  /** Resolves when those who waited for `handOver` have their bytes, or an error. */
  async waitersAnswered(): Promise<void> {
    await Promise.allSettled(this.#handedOn);
  }

  list(): readonly LayerFile[] {
    return this.#next?.list() ?? [...this.#byName.values()];
  }
  byName(name: string): LayerFile | undefined {
    return this.#next === undefined ? this.#byName.get(name) : this.#next.byName(name);
  }
  byInode(inode: bigint): LayerFile | undefined {
    return this.#next === undefined ? this.#byInode.get(inode) : this.#next.byInode(inode);
  }

  async read(
    file: LayerFile,
    offset: number,
    length: number,
    signal: AbortSignal,
    into?: Uint8Array<ArrayBuffer>,
  ): Promise<Uint8Array> {
    if (this.#next === undefined) {
      const here = this.#readHere(file, offset, length, into);
      if (here !== undefined) {
        this.#served++;
        return here;
      }
    }
    if (this.#next !== undefined) return await this.#next.read(file, offset, length, signal, into);
    const reading = this.#untilHandedOver(signal).then((files) => files.read(file, offset, length, signal, into));
    this.#handedOn.add(reading);
    try {
      return await reading;
    } finally {
      this.#handedOn.delete(reading);
    }
  }

  /** undefined where not all of it is here, or something is wrong: the store finds out what, and says it. */
  #readHere(
    file: LayerFile,
    offset: number,
    length: number,
    into: Uint8Array<ArrayBuffer> | undefined,
  ): Uint8Array | undefined {
    const layer = this.#byInode.get(file.inode);
    if (layer === undefined) return undefined;
    const size = Math.max(0, Math.min(length, layer.sizeBytes - offset));
    try {
      if (!this.#open.has(layer.inode)) this.#open.set(layer.inode, openLayer(layer));
      const opened = this.#open.get(layer.inode);
      if (opened === undefined) return undefined;
      const { fd, residency, map } = opened;
      const spans = map?.spansOf(offset, size);
      if (spans !== undefined && !residency.hasAll(...spans)) return undefined;
      const buffer = into?.subarray(0, size) ?? new Uint8Array(size);
      return readSync(fd, buffer, 0, size, offset) === size ? buffer : undefined;
    } catch {
      return undefined;
    }
  }

  async #untilHandedOver(signal: AbortSignal): Promise<LayerFiles> {
    signal.throwIfAborted();
    return await new Promise<LayerFiles>((resolve, reject) => {
      const abort = () => reject(signal.reason instanceof Error ? signal.reason : new Error('The reader has gone'));
      signal.addEventListener('abort', abort, { once: true });
      void this.#handedOver.promise.then((files) => {
        signal.removeEventListener('abort', abort);
        resolve(files);
      });
    });
  }
}

function findIn(root: string): readonly FoundLayer[] {
  return namesIn(root)
    .filter((hex) => HEX.test(hex))
    .flatMap((hex) => {
      const folder = join(root, hex);
      const record = readRecord(join(folder, LAYER_FILES.record));
      if (record === undefined) return [];
      const { imageSize, spanCount } = record;
      return [{ name: imageNameOf(hex), inode: imageInodeOf(hex), sizeBytes: imageSize, spanCount, folder }];
    });
}

function namesIn(folder: string): readonly string[] {
  try {
    return readdirSync(folder);
  } catch {
    // The first start of all.
    return [];
  }
}

/** The two numbers of a LayerRecord that matter here; undefined where they cannot be had. */
function readRecord(path: string): { readonly imageSize: number; readonly spanCount: number } | undefined {
  try {
    const said: unknown = JSON.parse(readFileSync(path, 'utf8'));
    if (typeof said !== 'object' || said === null || !('imageSize' in said) || !('spanCount' in said)) return undefined;
    const { imageSize, spanCount } = said;
    return isCount(imageSize) && isCount(spanCount) ? { imageSize, spanCount } : undefined;
  } catch {
    return undefined;
  }
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) >= 0;
}

/** undefined where spans are suspect since an unclean boot. @throws a file-system error, LayerError */
function openLayer(layer: FoundLayer): OpenLayer | undefined {
  const path = (file: keyof typeof LAYER_FILES): string => join(layer.folder, LAYER_FILES[file]);
  if (existsSync(path('suspect'))) return undefined;
  const residency = new Residency(layer.spanCount, readFileSync(path('residency')));
  const map = residency.complete ? undefined : readTable(path('map'));
  const fd = openSync(path('image'), 'r');
  if (fstatSync(fd).size === layer.sizeBytes) return { fd, residency, map };
  closeSync(fd);
  return undefined;
}

function readTable(path: string): Pick<SpanMap, 'spansOf'> {
  const fd = openSync(path, 'r');
  try {
    const part = (length: number): Uint8Array => {
      const bytes = new Uint8Array(length);
      return bytes.subarray(0, readSync(fd, bytes, 0, length, 0));
    };
    return parseSpanTable(part(spanTableBytes(part(SPAN_MAP_HEADER_BYTES))));
  } finally {
    closeSync(fd);
  }
}
