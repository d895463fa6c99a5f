import { rename } from 'node:fs/promises';
import { digestOfFile, type LayerFile } from './oci-layout.ts';
import { runTool } from './tool.ts';

/** The ways in which real registries' layers are compressed. */
export const COMPRESSIONS = [
  'gzip-1',
  'gzip-6',
  'gzip-9',
  /** Blocks compressed in parallel, flushed to byte boundaries. */
  'pigz',
  /** Many gzip members one after another. */
  'gzip-members',
  'zstd',
  /** Many zstd frames one after another. */
  'zstd-frames',
  'uncompressed',
] as const;
export type Compression = (typeof COMPRESSIONS)[number];

const TYPES: Readonly<Record<'gzip' | 'zstd' | 'tar', string>> = {
  gzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
  zstd: 'application/vnd.oci.image.layer.v1.tar+zstd',
  tar: 'application/vnd.oci.image.layer.v1.tar',
};

const SCRIPTS: Readonly<Record<Compression, string>> = {
  'gzip-1': 'gzip -n -1 <"$1" >"$2"',
  'gzip-6': 'gzip -n -6 <"$1" >"$2"',
  'gzip-9': 'gzip -n -9 <"$1" >"$2"',
  pigz: 'pigz -n -6 -c <"$1" >"$2"',
  'gzip-members': `split --bytes=3000001 --filter='gzip -n -6' "$1" >"$2"`,
  zstd: 'zstd -q -3 -c <"$1" >"$2"',
  'zstd-frames': `split --bytes=1000003 --filter='zstd -q -3 -c' "$1" >"$2"`,
  uncompressed: 'cp --reflink=auto "$1" "$2"',
};

/** Compresses a tar file into `blob` and describes it as a layer. */
export async function compressLayer(
  tar: { readonly path: string; readonly diffId: LayerFile['diffId'] },
  blob: string,
  compression: Compression,
  createdBy: string,
  signal: AbortSignal,
): Promise<LayerFile> {
  await runTool('sh', ['-euc', SCRIPTS[compression], 'compress', tar.path, `${blob}.tmp`], signal);
  await rename(`${blob}.tmp`, blob);
  const { digest, size } = await digestOfFile(blob);
  const type = compression === 'uncompressed' ? 'tar' : compression.startsWith('zstd') ? 'zstd' : 'gzip';
  return { path: blob, mediaType: TYPES[type], digest, size, diffId: tar.diffId, createdBy };
}
