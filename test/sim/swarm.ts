import { chooseLeases, LEASE_LIMITS } from '#services/distributor/lease-policy.ts';
import { chooseNeighbours, NEIGHBOUR_LIMITS } from '#services/distributor/neighbour-policy.ts';
import { SpanPicker, type Pick } from '#services/snapshotter/peers/span-picker.ts';
import { UPLOAD_LIMITS } from '#services/snapshotter/peers/upload-slots.ts';
import { EventQueue } from './event-queue.ts';
import { Links } from './links.ts';

export interface SwarmOptions {
  readonly nodes: number;
  /** Of what every node needs. */
  readonly bytes: number;
  readonly spanBytes: number;
  readonly bytesPerS: number;
  /** One way. */
  readonly latencyS?: number;
  /** All nodes begin within this time. */
  readonly spreadS?: number;
  readonly seed?: number;
}

export interface SwarmResult {
  readonly nodes: number;
  readonly spans: number;
  readonly firstS: number;
  readonly lastS: number;
  /** (c/B)(M + floor(log2 N)), which no scheme can beat where links are equal. */
  readonly boundS: number;
  readonly ratio: number;
  /** Spans read from the registry, of `spans`. */
  readonly registryReads: number;
  readonly perNode: {
    readonly peerRequests: number;
    readonly busyAnswers: number;
    readonly residencyMessages: number;
    /** To and from the distributor. */
    readonly distributorMessages: number;
    readonly neighbours: number;
  };
  readonly directoryOperations: number;
  readonly events: number;
}

interface Member {
  readonly index: number;
  readonly picker: SpanPicker<number>;
  readonly have: Uint8Array;
  count: number;
  neighbours: number[];
  uploads: number;
  readonly queue: { readonly to: number; readonly start: () => void }[];
  waiting: boolean;
  registryReads: number;
}

/** Of joiners by others that join later. */
const MAX_DEGREE = NEIGHBOUR_LIMITS.given * 3;
/** Members that the directory answers to one that joins. */
const SAMPLE = 40;
const EVENT_LIMIT = 500_000_000;

/** A burst: every node needs the same spans at the same time, and nobody has any. */
export function simulateSwarm(options: SwarmOptions): SwarmResult {
  const { nodes: count, bytesPerS, spanBytes } = options;
  const latencyS = options.latencyS ?? 0.00025;
  const spans = Math.ceil(options.bytes / spanBytes);
  const random = xorshift(options.seed ?? 1);
  const queue = new EventQueue();
  const registry = count;
  const links = new Links(queue, count + 1, bytesPerS);
  const totals = { requests: 0, busy: 0, residency: 0, distributor: 0, directory: 0, reads: 0 };
  let firstS = 0;
  let lastS = 0;
  let finished = 0;
  let nextUnread = 0;
  let outstanding = 0;
  const waiting: Member[] = [];
  const joined: Member[] = [];
  const members = Array.from({ length: count }, (_, index): Member => {
    const picker = new SpanPicker<number>({ spanCount: spans, bytesOf: () => spanBytes, random });
    for (let span = 0; span < spans; span++) picker.want(span, false);
    return {
      index,
      picker,
      have: new Uint8Array(spans),
      count: 0,
      neighbours: [],
      uploads: 0,
      queue: [],
      waiting: false,
      registryReads: 0,
    };
  });
  const at = (index: number): Member => {
    const member = members[index];
    if (member === undefined) throw new Error(`There is no node ${index}`);
    return member;
  };

  const link = (a: Member, b: Member): void => {
    a.neighbours.push(b.index);
    a.picker.addNeighbour(b.index);
    for (let span = 0; span < spans; span++) if (b.have[span] === 1) a.picker.mark(b.index, span, true);
  };
  const join = (member: Member): void => {
    totals.distributor += 2;
    totals.directory += 4;
    // The directory answers a bounded sample of the members, as it does in the service.
    const sample = new Set<Member>(joined.length <= SAMPLE ? joined : []);
    while (sample.size < Math.min(SAMPLE, joined.length)) {
      const other = joined[Math.floor(random() * joined.length)];
      if (other !== undefined) sample.add(other);
    }
    const candidates = [...sample].flatMap(({ index, neighbours }) =>
      neighbours.length >= MAX_DEGREE ? [] : [{ node: String(index), zone: '' }],
    );
    for (const node of chooseNeighbours({ node: String(member.index), zone: '' }, candidates, random)) {
      const other = at(Number(node));
      link(member, other);
      link(other, member);
    }
    joined.push(member);
    work(member);
  };

  const got = (member: Member, span: number): void => {
    if (member.have[span] === 1) throw new Error(`Node ${member.index} has got span ${span} twice`);
    member.have[span] = 1;
    member.picker.unwant(span);
    if (++member.count === spans) {
      lastS = queue.now;
      if (finished++ === 0) firstS = queue.now;
    }
    totals.residency += member.neighbours.length;
    queue.after(latencyS, () => {
      for (const index of member.neighbours) {
        const other = at(index);
        other.picker.mark(member.index, span, true);
        if (other.picker.isWanted(span)) work(other);
      }
    });
    work(member);
  };

  const transfer = (member: Member, pick: Pick<number>): void => {
    const holder = at(pick.neighbour);
    const start = (): void => {
      holder.uploads++;
      links.send(holder.index, member.index, spanBytes * pick.spans.length, () => {
        holder.uploads--;
        holder.queue.shift()?.start();
        queue.after(latencyS, () => {
          member.picker.ended(pick, []);
          for (const span of pick.spans) got(member, span);
        });
      });
    };
    totals.requests++;
    queue.after(latencyS, () => {
      if (holder.uploads < UPLOAD_LIMITS.active) start();
      else if (holder.queue.length < UPLOAD_LIMITS.queued) holder.queue.push({ to: member.index, start });
      else {
        totals.busy++;
        const restS = (2 * spanBytes) / bytesPerS;
        queue.after(latencyS, () => {
          member.picker.ended(pick, pick.spans, (queue.now + restS) * 1000);
          queue.after(restS, () => work(member));
          work(member);
        });
      }
    });
  };

  const work = (member: Member): void => {
    if (member.count === spans) return;
    for (;;) {
      const pick = member.picker.pick(queue.now * 1000);
      if (pick === undefined) break;
      transfer(member, pick);
    }
    if (member.waiting || nextUnread >= spans) return;
    member.waiting = true;
    totals.distributor++;
    queue.after(latencyS, () => {
      waiting.push(member);
      lease();
    });
  };

  const lease = (): void => {
    for (;;) {
      if (nextUnread >= spans || outstanding >= LEASE_LIMITS.outstanding || waiting.length === 0) return;
      totals.directory += 2;
      const sample = new Set<Member>();
      for (let i = 0; i < LEASE_LIMITS.samples; i++) {
        const member = waiting[Math.floor(random() * waiting.length)];
        if (member !== undefined) sample.add(member);
      }
      const grants = chooseLeases(
        {
          members: Math.max(2, joined.length),
          outstanding,
          waiting: Array.from(sample, ({ index }) => ({
            node: String(index),
            load: links.downloads(index),
            room: 1,
          })),
          unread: [nextUnread],
        },
        random,
      );
      for (const grant of grants) {
        const member = at(Number(grant.node));
        waiting.splice(waiting.indexOf(member), 1);
        member.waiting = false;
        for (const span of grant.spans) read(member, span);
      }
    }
  };

  const read = (member: Member, span: number): void => {
    nextUnread++;
    outstanding++;
    totals.reads++;
    totals.distributor += 2;
    queue.after(latencyS, () => {
      member.picker.reserve(span);
      queue.after(latencyS, () => {
        links.send(registry, member.index, spanBytes, () => {
          queue.after(2 * latencyS, () => {
            outstanding--;
            lease();
          });
          queue.after(latencyS, () => got(member, span));
        });
      });
    });
  };

  for (const member of members) queue.after(random() * (options.spreadS ?? 0.001), () => join(member));
  queue.run(EVENT_LIMIT);
  if (finished !== count) throw new Error(`${count - finished} of ${count} nodes have not got everything`);
  const boundS = (spanBytes / bytesPerS) * (spans + Math.floor(Math.log2(count)));
  const each = (total: number): number => Math.round((total / count) * 100) / 100;
  return {
    nodes: count,
    spans,
    firstS,
    lastS,
    boundS,
    ratio: lastS / boundS,
    registryReads: totals.reads,
    perNode: {
      peerRequests: each(totals.requests),
      busyAnswers: each(totals.busy),
      residencyMessages: each(totals.residency),
      distributorMessages: each(totals.distributor),
      neighbours: each(members.reduce((sum, { neighbours }) => sum + neighbours.length, 0)),
    },
    directoryOperations: totals.directory,
    events: queue.count,
  };
}

/** Numbers in [0, 1), the same for the same seed. */
function xorshift(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state / 4_294_967_296;
  };
}
