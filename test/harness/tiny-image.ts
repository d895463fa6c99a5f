import { mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import { sha256 } from '#shared/digest/digest.ts';
import { writeOciLayout, type LayerFile, type OciLayout } from '#test/images/oci-layout.ts';
import { runTool } from '#test/images/tool.ts';

/** A static x86-64 program: writes `text` to its standard output and ends with `exitCode`, or waits for ever. */
export function tinyProgram(text: string, exitCode: number | 'never'): Buffer {
  const message = Buffer.from(text);
  const u32 = (value: number): number[] => [...Buffer.from(Uint32Array.of(value).buffer)];
  const end =
    exitCode === 'never'
      ? // again: mov eax, 34 (pause); syscall; jmp again
        [0xb8, ...u32(34), 0x0f, 0x05, 0xeb, 0xf7]
      : // mov eax, 231 (exit_group); mov edi, exitCode; syscall
        [0xb8, ...u32(231), 0xbf, ...u32(exitCode), 0x0f, 0x05];
  // mov eax, 1 (write); mov edi, 1; lea rsi, [rip + …] (behind the code); mov edx, length; syscall
  const write = [0xb8, ...u32(1), 0xbf, ...u32(1), 0x48, 0x8d, 0x35, ...u32(7 + end.length)];
  const code = Buffer.from([...write, 0xba, ...u32(message.length), 0x0f, 0x05, ...end]);
  const bytes = 120 + code.length + message.length;
  const header = Buffer.alloc(120);
  header.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  header.writeUInt16LE(2, 16); // e_type: executable
  header.writeUInt16LE(62, 18); // e_machine: x86-64
  header.writeUInt32LE(1, 20);
  header.writeBigUInt64LE(0x400078n, 24); // e_entry
  header.writeBigUInt64LE(64n, 32); // e_phoff
  header.writeUInt16LE(64, 52);
  header.writeUInt16LE(56, 54);
  header.writeUInt16LE(1, 56); // e_phnum
  header.writeUInt32LE(1, 64); // PT_LOAD
  header.writeUInt32LE(5, 68); // read and execute
  header.writeBigUInt64LE(0x400000n, 80);
  header.writeBigUInt64LE(0x400000n, 88);
  header.writeBigUInt64LE(BigInt(bytes), 96);
  header.writeBigUInt64LE(BigInt(bytes), 104);
  header.writeBigUInt64LE(0x1000n, 112);
  return Buffer.concat([header, code, message]);
}

/** Files of a layer by path; a path that ends in a slash is a directory. */
export type TinyLayer = Readonly<Record<string, Buffer | string>>;

/** An image of few files, made in `folder`. Files are executable; parents without an entry are implied. `zstd`: in one frame. */
export async function tinyImage(
  folder: string,
  layers: readonly TinyLayer[],
  command: readonly string[],
  signal: AbortSignal,
  compression: 'gzip' | 'zstd' = 'gzip',
): Promise<OciLayout> {
  await mkdir(folder, { recursive: true });
  const made: LayerFile[] = [];
  for (const [i, files] of layers.entries()) {
    const tree = join(folder, `tree-${i}`);
    for (const [path, content] of Object.entries(files)) {
      const full = join(tree, path);
      await mkdir(path.endsWith('/') ? full : dirname(full), { recursive: true });
      if (!path.endsWith('/')) await writeFile(full, content, { mode: 0o755 });
    }
    const blob = join(folder, `layer-${i}.tar.${compression}`);
    const names = Object.keys(files).map((path) => path.replace(/\/$/, ''));
    await runTool(
      'tar',
      [
        '--create',
        `--${compression}`,
        '--no-recursion',
        '--owner=0',
        '--group=0',
        '--file',
        blob,
        '--directory',
        tree,
        ...names,
      ],
      signal,
    );
    const bytes = await readFile(blob);
    made.push({
      path: blob,
      mediaType: `application/vnd.oci.image.layer.v1.tar+${compression}`,
      digest: sha256(bytes),
      size: (await stat(blob)).size,
      diffId: sha256(compression === 'zstd' ? zstdDecompressSync(bytes) : gunzipSync(bytes)),
      createdBy: `layer ${i}`,
    });
    await rm(tree, { recursive: true });
  }
  return await writeOciLayout(join(folder, 'layout'), made, { command });
}
