import { createHash } from 'node:crypto';
import type { LayerFile, LayerFiles } from './layer-files.ts';

/** Files for tests and benchmarks: every byte is a function of its offset, nothing is stored. */
export interface TestFiles extends LayerFiles {
  /** Reads of this name wait until the gate opens. */
  gate(name: string): { open(): void; readonly entered: Promise<void> };
  fail(name: string): void;
  remove(name: string): void;
}

export function createTestFiles(sizes: Readonly<Record<string, number>>): TestFiles {
  const files = new Map<string, LayerFile>();
  for (const [name, sizeBytes] of Object.entries(sizes)) files.set(name, { name, sizeBytes, inode: inodeOf(name) });
  const gates = new Map<string, { readonly opened: Promise<void>; enter(): void }>();
  const failing = new Set<string>();
  return {
    list: () => [...files.values()],
    byName: (name) => files.get(name),
    byInode: (inode) => [...files.values()].find((file) => file.inode === inode),
    async read(file, offset, length, signal, into) {
      const gate = gates.get(file.name);
      if (gate) {
        gate.enter();
        await Promise.race([gate.opened, aborted(signal)]);
      }
      if (failing.has(file.name)) throw new Error('told to fail');
      const bytes = patternBytes(offset, length);
      if (into === undefined) return bytes;
      into.set(bytes);
      return into.subarray(0, length);
    },
    gate(name) {
      const opened = Promise.withResolvers<void>();
      const entered = Promise.withResolvers<void>();
      gates.set(name, { opened: opened.promise, enter: entered.resolve });
      return {
        open() {
          gates.delete(name);
          opened.resolve();
        },
        entered: entered.promise,
      };
    },
    fail: (name) => void failing.add(name),
    remove: (name) => void files.delete(name),
  };
}

/** Eight bytes per word: its index, mixed, so that a shifted page shows. */
export function patternBytes(offset: number, length: number): Buffer {
  const first = Math.floor(offset / 8);
  const words = new BigUint64Array(Math.ceil((offset + length) / 8) - first);
  for (let index = 0; index < words.length; index++) {
    words[index] = BigInt(first + index) * 0x9e37_79b9_7f4a_7c15n;
  }
  const start = offset - first * 8;
  return Buffer.from(words.buffer, start, length);
}

function inodeOf(name: string): bigint {
  return createHash('sha256').update(name).digest().readBigUInt64LE(0) | (1n << 62n);
}

async function aborted(signal: AbortSignal): Promise<never> {
  return await new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => reject(new Error('aborted')), { once: true });
  });
}
