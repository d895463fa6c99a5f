import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import type { BenchValues } from './bench.ts';
import { measureConversions } from './index-conversions.ts';
import type { IndexRun } from './index-child.ts';
import { mebibytes, median, printTable, spreadSeconds } from './table.ts';

export const title =
  'indexing a layer in one pass, and converting an image: speed, in turn with `gzip -dc` and `ctr-remote`; memory; size of the index';
export const options = {
  rounds: { type: 'string', default: '5' },
  megabytes: { type: 'string', default: '300' },
  only: { type: 'string' },
  file: { type: 'string' },
  image: { type: 'string', default: 'perl' },
  large: { type: 'string' },
} as const;

const execute = promisify(execFile);

/** What is packed where no blob is named: of all kinds, and on every machine. */
const FOLDERS = ['usr/bin', 'usr/lib', 'usr/share/doc', 'usr/include'];

/** How a blob is made of a tar; the decompressor that it is compared with. */
const COMPRESSIONS: Readonly<Record<string, { readonly pack: string; readonly unpack: string }>> = {
  'gzip -1': { pack: 'gzip -1', unpack: 'gzip -dc' },
  'gzip -6': { pack: 'gzip -6', unpack: 'gzip -dc' },
  'gzip -9': { pack: 'gzip -9', unpack: 'gzip -dc' },
  pigz: { pack: 'pigz -p 2', unpack: 'gzip -dc' },
  zstd: { pack: 'zstd -q -3', unpack: 'zstd -q -dc' },
  tar: { pack: 'cat', unpack: 'cat' },
};

/** As a process is run that is to stay small: garbage is collected early, types are stripped once for all runs. */
const NODE_OPTIONS = ['--disable-warning=ExperimentalWarning', '--max-semi-space-size=2'];

interface Measured {
  readonly name: string;
  readonly blobBytes: number;
  readonly indexing: readonly IndexRun[];
  /** Wall milliseconds of each round. */
  readonly unpacking: readonly number[];
}

/**
 * `--rounds N` (5), `--megabytes N` (300: of the tar), `--only NAME,NAME`, `--file BLOB`: that blob in place of ours. `--image NAME`
 * (perl): the test image that is converted as well, `none` for none. `--large N`: also a
 * layer whose tar has so many megabytes, once; 5000 make a layer of some 2 GB.
 */
export async function run(values: BenchValues<typeof options>, signal: AbortSignal): Promise<unknown> {
  const folder = await mkdtemp(join(tmpdir(), 'kindling-bench-index-'));
  try {
    const measured: Measured[] = [];
    const only = values.only?.split(',');
    if (values.file !== undefined) {
      measured.push(await measure(values.file, resolve(values.file), 'gzip -dc', Number(values.rounds), signal));
    } else {
      const tar = join(folder, 'tar');
      await packTar(tar, Number(values.megabytes) * 1_000_000, signal);
      for (const [name, { pack, unpack }] of Object.entries(COMPRESSIONS)) {
        if (only !== undefined && !only.includes(name)) continue;
        const blob = join(folder, 'blob');
        await shell(`${pack} < '${tar}' > '${blob}'`, signal);
        measured.push(await measure(name, blob, unpack, Number(values.rounds), signal));
      }
    }
    if (values.large !== undefined) {
      const blob = join(folder, 'blob');
      await packTar(`${blob}.list`, Number(values.large) * 1_000_000, signal, `pigz -1 -p 2 > '${blob}'`);
      measured.push(await measure('pigz -1, large', blob, 'gzip -dc', 1, signal));
    }
    report(measured);
    const isConverted = values.image !== 'none' && values.file === undefined;
    const conversions = isConverted ? await measureConversions(values.image, Number(values.rounds), signal) : [];
    return { layers: measured.map((each) => ({ ...each, ...figures(each) })), conversions };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** A tar of about so many bytes, into a file or a command: the machine's own files, over and over where they are too few. */
async function packTar(tar: string, bytes: number, signal: AbortSignal, into?: string): Promise<void> {
  const folders = Array.from({ length: 20 }, () => FOLDERS.join(' ')).join(' ');
  // Names are taken until their sizes add up; find prints both, so no process is started for each.
  const list = `(cd / && find ${folders} -type f -size -100M -readable -printf '%s %p\\n' 2>/dev/null || true)`;
  await shell(
    `${list} | awk -v left=${bytes} 'left > 0 { left -= $1; sub(/^[0-9]+ /, ""); print }' > '${tar}.list'; ` +
      `tar -cf ${into === undefined ? `'${tar}'` : '-'} --hard-dereference --ignore-failed-read -C / -T '${tar}.list'${into === undefined ? '' : ` | ${into}`}`,
    signal,
  );
}

async function shell(command: string, signal: AbortSignal): Promise<string> {
  const { stdout } = await execute('bash', ['-o', 'pipefail', '-c', command], { signal, maxBuffer: 64 * 1024 * 1024 });
  return stdout;
}

async function measure(
  name: string,
  blob: string,
  unpack: string,
  rounds: number,
  signal: AbortSignal,
): Promise<Measured> {
  const blobBytes = (await stat(blob)).size;
  const digest = `sha256:${(await shell(`sha256sum < '${blob}'`, signal)).slice(0, 64)}`;
  const diffId = `sha256:${(await shell(`${unpack} < '${blob}' | sha256sum`, signal)).slice(0, 64)}`;
  const indexing: IndexRun[] = [];
  const unpacking: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    const { stdout } = await execute(
      process.execPath,
      [...NODE_OPTIONS, resolve(import.meta.dirname, 'index-child.ts'), blob, digest],
      { signal },
    );
    const run = JSON.parse(stdout) as IndexRun;
    assert.equal(run.diffId, diffId, `${name}: the indexer has seen another tar than ${unpack}`);
    indexing.push(run);
    const started = performance.now();
    await shell(`${unpack} < '${blob}' > /dev/null`, signal);
    unpacking.push(performance.now() - started);
  }
  return { name, blobBytes, indexing, unpacking };
}

function figures({ blobBytes, indexing, unpacking }: Measured): {
  readonly ofUnpackingSpeed: number;
  readonly megabytesPerSecond: number;
  readonly indexShare: number;
  readonly peakBytes: number;
} {
  const [first] = indexing;
  const millis = median(indexing.map((run) => run.millis));
  return {
    ofUnpackingSpeed: median(unpacking) / millis,
    megabytesPerSecond: (first?.decodedBytes ?? 0) / millis / 1000,
    indexShare: (first?.indexBytes ?? 0) / blobBytes,
    peakBytes: Math.max(...indexing.map((run) => run.peakBytes)),
  };
}

function report(measured: readonly Measured[]): void {
  printTable(
    [
      'blob',
      'bytes',
      'decoded',
      'indexing',
      'unpacking',
      'speed of it',
      'MB/s',
      'spans',
      'index',
      'of the blob',
      'peak',
    ],
    measured.map((each) => {
      const { ofUnpackingSpeed, megabytesPerSecond, indexShare, peakBytes } = figures(each);
      const [first] = each.indexing;
      return [
        each.name,
        mebibytes(each.blobBytes),
        mebibytes(first?.decodedBytes ?? 0),
        spreadSeconds(each.indexing.map((run) => run.millis)),
        spreadSeconds(each.unpacking),
        ofUnpackingSpeed.toFixed(2),
        megabytesPerSecond.toFixed(0),
        String(first?.spans ?? 0),
        mebibytes(first?.indexBytes ?? 0),
        `${(indexShare * 100).toFixed(2)} %`,
        mebibytes(peakBytes),
      ];
    }),
  );
}
