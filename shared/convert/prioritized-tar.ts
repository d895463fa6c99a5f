import { mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { LayerEntry } from '#shared/layer/layer-index.ts';
import type { TarEvent } from './tar-events.ts';

const READ_BYTES = 1024 * 1024;

interface Spooled {
  readonly entry: LayerEntry;
  readonly header: Buffer;
  readonly offset: number;
}

/**
 * The events of a tar with the entries that `prioritize` names first, in that order, their parent directories and hard-link
 * targets before them; between the two parts comes one `undefined`. The content is kept in a file meanwhile.
 */
export async function* prioritizedTar(
  events: AsyncIterable<TarEvent>,
  prioritize: readonly string[],
  folder: string | undefined,
  signal: AbortSignal,
): AsyncGenerator<TarEvent | undefined> {
  const own = await mkdtemp(join(folder ?? tmpdir(), 'kindling-reorder-'));
  try {
    await using file = await open(join(own, 'content'), 'wx+', 0o600);
    const entries: Spooled[] = [];
    let offset = 0;
    for await (const event of events) {
      signal.throwIfAborted();
      if (event.kind === 'entry') entries.push({ entry: event.entry, header: Buffer.from(event.header), offset });
      else {
        for (let at = 0; at < event.bytes.length; ) {
          const { bytesWritten } = await file.write(event.bytes, at, event.bytes.length - at, offset);
          at += bytesWritten;
          offset += bytesWritten;
        }
      }
    }
    const first = firstEntries(entries, prioritize);
    const rest = entries.filter((entry) => !first.has(entry));
    for (const part of [[...first], rest]) {
      for (const { entry, header, offset: start } of part) {
        signal.throwIfAborted();
        yield { kind: 'entry', entry, header };
        for (let at = 0; at < entry.size; ) {
          const bytes = Buffer.allocUnsafe(Math.min(READ_BYTES, entry.size - at));
          const { bytesRead } = await file.read(bytes, 0, bytes.length, start + at);
          if (bytesRead === 0) throw new Error('the spool file of a conversion is shorter than what was written to it');
          yield { kind: 'content', bytes: bytes.subarray(0, bytesRead) };
          at += bytesRead;
        }
      }
      if (part !== rest) yield undefined;
    }
  } finally {
    await rm(own, { recursive: true, force: true });
  }
}

/**
 * In the order they are to have. A path that the layer has more than once stays where it is, since the last one counts; so
 * does what depends on it.
 */
function firstEntries(entries: readonly Spooled[], prioritize: readonly string[]): Set<Spooled> {
  const byPath = new Map<string, Spooled | 'several'>();
  for (const spooled of entries) {
    const path = spooled.entry.path.toString('latin1');
    byPath.set(path, byPath.has(path) ? 'several' : spooled);
  }
  const first = new Set<Spooled>();
  const move = (path: string, depth: number): boolean => {
    const found = byPath.get(path);
    if (found === 'several' || depth > 64) return false;
    const slash = path.lastIndexOf('/');
    if (path !== '' && !move(slash < 0 ? '' : path.slice(0, slash), depth + 1)) return false;
    if (found === undefined || first.has(found)) return true;
    const { entry } = found;
    if (entry.type === 'hardlink' && !move(entry.linkName.toString('latin1'), depth + 1)) return false;
    first.add(found);
    return true;
  };
  for (const path of prioritize) {
    const clean = path.split('/').filter((part) => part !== '' && part !== '.');
    move(Buffer.from(clean.join('/')).toString('latin1'), 0);
  }
  return first;
}
