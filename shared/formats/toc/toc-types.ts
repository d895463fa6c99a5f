import type { EntryType } from '#shared/layer/layer-index.ts';

/** What the tables of contents of eStargz, zstd:chunked and SOCI call the types of entries. */
const NAMES: Readonly<Record<EntryType, string>> = {
  file: 'reg',
  directory: 'dir',
  symlink: 'symlink',
  hardlink: 'hardlink',
  character: 'char',
  block: 'block',
  fifo: 'fifo',
};
const TYPES: ReadonlyMap<string, EntryType> = new Map(
  (Object.keys(NAMES) as EntryType[]).map((type) => [NAMES[type], type]),
);

export const TOC_TYPE_NAMES: readonly string[] = [...TYPES.keys()];

export function tocTypeName(type: EntryType): string {
  return NAMES[type];
}

/** undefined where there is no such type. */
export function tocTypeOf(name: string): EntryType | undefined {
  return TYPES.get(name);
}
