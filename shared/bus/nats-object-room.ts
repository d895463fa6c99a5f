import type { JetStreamManager, ObjectInfo, ObjectStore as NatsObjectStore } from 'nats';
import { checkObjectSize, toDrop } from './local-objects.ts';
import { isNotFound } from './nats-link.ts';

export const OBJECT_BUCKET = 'KINDLING_OBJECTS';
/** As the object stores of all NATS clients name them: github.com/nats-io/nats-architecture-and-design ADR-20. */
export const STREAM = `OBJ_${OBJECT_BUCKET}`;
export const CHUNKS = `$O.${OBJECT_BUCKET}.C.`;
const METAS = `$O.${OBJECT_BUCKET}.M.`;
/** Of the stream's space, what objects may fill: their parts and names have headers. */
const USABLE = 0.95;

/**
 * Drops the objects that were put first when there is no room for `bytes` more. Two that do so at the same time drop the same.
 *
 * @throws BusError `too-large` when the space as a whole is too small for it
 */
export async function makeRoom(
  jsm: JetStreamManager,
  store: NatsObjectStore,
  name: string,
  bytes: Uint8Array,
): Promise<void> {
  const { state, config } = await jsm.streams.info(STREAM);
  // -1: whoever runs the servers has set no bound.
  const spaceBytes = config.max_bytes > 0 ? config.max_bytes * USABLE : Number.MAX_SAFE_INTEGER;
  checkObjectSize(name, bytes, spaceBytes);
  if (state.bytes + bytes.length <= spaceBytes) return;
  const objects = new Map((await listed(store)).map((info) => [info.name, info]));
  const dropped = toDrop([...objects.values()], bytes.length, spaceBytes);
  for (const old of dropped) {
    const info = objects.get(old);
    if (info === undefined) continue;
    // The name first, so that nobody begins to read what is going; up to this put of it only.
    const filter = `${METAS}${Buffer.from(old).toString('base64url')}`;
    await jsm.streams.purge(STREAM, { filter: padded(filter, old), seq: info.revision + 1 });
    await jsm.streams.purge(STREAM, { filter: `${CHUNKS}${info.nuid}` });
  }
}

/** Removes parts that belong to no object: whoever was putting one was killed. */
export async function removeOrphans(jsm: JetStreamManager, store: NatsObjectStore, ageMs: number): Promise<void> {
  const { state } = await jsm.streams.info(STREAM, { subjects_filter: `${CHUNKS}>` });
  const subjects = Object.keys(state.subjects ?? {});
  if (subjects.length === 0) return;
  const whole = new Set((await listed(store)).map(({ nuid }) => `${CHUNKS}${nuid}`));
  for (const subject of subjects) {
    if (whole.has(subject)) continue;
    const last = await jsm.streams.getMessage(STREAM, { last_by_subj: subject }).catch((error: unknown) => {
      if (isNotFound(error)) return undefined;
      throw error;
    });
    // One that is being put now is not whole either.
    if (last && Date.now() - last.time.getTime() > ageMs) await jsm.streams.purge(STREAM, { filter: subject });
  }
}

/** In the order in which they were put. */
async function listed(store: NatsObjectStore): Promise<readonly ObjectInfo[]> {
  const all = await store.list();
  return all.filter(({ deleted }) => !deleted).toSorted((a, b) => a.revision - b.revision);
}

/** The client's base64 has its padding. */
function padded(filter: string, name: string): string {
  return filter + '='.repeat((3 - (Buffer.byteLength(name) % 3)) % 3);
}
