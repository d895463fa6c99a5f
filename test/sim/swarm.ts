import { LOCATED_HOLDERS } from '#services/distributor/directory-limits.ts';
import { chooseLeases, LEASE_LIMITS, LeaseAges } from '#services/distributor/lease-policy.ts';
import { chooseNeighbours, NEIGHBOUR_LIMITS } from '#services/distributor/neighbour-policy.ts';
import { SourceRates } from '#services/snapshotter/peers/source-rates.ts';
import { SpanPicker, type Pick } from '#services/snapshotter/peers/span-picker.ts';
import { SWARM_LIMITS } from '#services/snapshotter/peers/swarm-limits.ts';
import { UploadSlots, type UploadTurn } from '#services/snapshotter/peers/upload-slots.ts';
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
  /** The first so many nodes have slow links, and begin a moment before the others. */
  readonly slow?: { readonly nodes: number; readonly bytesPerS: number };
}

export interface SwarmResult {
  readonly nodes: number;
  readonly spans: number;
  readonly firstS: number;
  /** Of nodes whose links are not slow. */
  readonly lastS: number;
  /** (c/B)(M + floor(log2 N)), which no scheme can beat where links are equal. */
  readonly boundS: number;
  readonly ratio: number;
  /** Spans read from the registry, each as often as it was: at least `spans`. */
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
  readonly isSlow: boolean;
  /** Where some links are slow; else it is not needed, and costs as much as all the rest. */
  readonly rates: SourceRates | undefined;
  readonly picker: SpanPicker<number>;
  readonly have: Uint8Array;
  count: number;
  neighbours: number[];
  readonly slots: UploadSlots;
  /** Transfers whose bytes are coming. */
  receiving: number;
  /** Transfers and reads that are not late. */
  inTime: number;
  readonly located: Map<number, number>;
  waiting: boolean;
  registryReads: number;
}

/** Of joiners by others that join later. */
const MAX_DEGREE = NEIGHBOUR_LIMITS.given * 3;
/** A transfer that is not over after this is raced by another, as `DOWNLOAD_PACE` has it at first. */
const HEDGE_S = 1;
/** A transfer that is not over after this keeps nobody from the slot, as `PeerServer` has it where links are fast. */
const LASTING_S = 1;
/** A distributor looks after its leases so often, beside with each update. */
const SWEEP_S = 1;
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
  const slow = options.slow ?? { nodes: 0, bytesPerS };
  const links = new Links(queue, count + 1, (node) => (node < slow.nodes ? slow.bytesPerS : bytesPerS));
  const totals = { requests: 0, busy: 0, residency: 0, distributor: 0, directory: 0, reads: 0 };
  let firstS = 0;
  let lastS = 0;
  let finished = 0;
  let nextUnread = 0;
  let outstanding = 0;
  const ages = new LeaseAges();
  const leases = new Map<number, { readonly member: Member; sinceS: number }>();
  /** Whose leases are too old. */
  const aged: number[] = [];
  const waiting: Member[] = [];
  const joined: Member[] = [];
  const members = Array.from({ length: count }, (_, index): Member => {
    const rates = slow.nodes > 0 ? new SourceRates(() => queue.now * 1000) : undefined;
    const speeds = rates && {
      msFor: (node: number, bytes: number) => rates.msFor(String(node), bytes),
      isSlow: (node: number) => rates.isSlow(String(node)),
    };
    const picker = new SpanPicker<number>({
      spanCount: spans,
      bytesOf: () => spanBytes,
      random,
      ...(speeds === undefined ? {} : { speeds }),
    });
    for (let span = 0; span < spans; span++) picker.want(span, false);
    return {
      index,
      isSlow: index < slow.nodes,
      rates,
      picker,
      have: new Uint8Array(spans),
      count: 0,
      neighbours: [],
      slots: new UploadSlots(),
      receiving: 0,
      inTime: 0,
      located: new Map(),
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
  const meet = (member: Member, other: Member): void => {
    link(member, other);
    link(other, member);
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
      meet(member, at(Number(node)));
    }
    joined.push(member);
    work(member);
  };

  const got = (member: Member, span: number): void => {
    // Twice only where it did not wait for one that was slow.
    if (member.have[span] === 1 && slow.nodes > 0) return;
    if (member.have[span] === 1) throw new Error(`Node ${member.index} has got span ${span} twice`);
    member.have[span] = 1;
    leases.delete(span);
    member.picker.unwant(span);
    if (++member.count === spans && !member.isSlow) {
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
    const name = String(pick.neighbour);
    const missing = () => pick.spans.filter((span) => member.have[span] !== 1);
    let over = false;
    let hedged = false;
    let startS = 0;
    const accept = (): void => {
      startS = queue.now;
      const hedge = (): void => {
        if (over) return;
        member.rates?.atMost(name, pick.bytes, (queue.now - startS) * 1000);
        if (!hedged) {
          hedged = true;
          member.inTime--;
          member.picker.late(pick, missing());
        }
        work(member);
        queue.after(HEDGE_S, hedge);
      };
      if (slow.nodes > 0) queue.after(HEDGE_S, hedge);
    };
    const start = (turn: UploadTurn): void => {
      member.receiving++;
      if (slow.nodes > 0) queue.after(LASTING_S, () => turn.lasts());
      links.send(holder.index, member.index, spanBytes * pick.spans.length, () => {
        member.receiving--;
        turn.end();
        over = true;
        if (!hedged) member.inTime--;
        member.rates?.took(name, pick.bytes, (queue.now - startS) * 1000);
        queue.after(latencyS, () => {
          member.picker.ended(pick, []);
          for (const span of pick.spans) got(member, span);
        });
      });
    };
    totals.requests++;
    member.inTime++;
    const { receiving } = member;
    queue.after(latencyS, () => {
      const entered = holder.slots.enter({ demand: false, receiving }, start);
      if (entered !== undefined) accept();
      else {
        totals.busy++;
        member.inTime--;
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
    locate(member);
    if (member.waiting || (nextUnread >= spans && aged.length === 0)) return;
    member.waiting = true;
    totals.distributor++;
    queue.after(latencyS, () => {
      waiting.push(member);
      grantLeases();
    });
  };

  /** What only slow neighbours have is looked for elsewhere, when nothing comes in good time. */
  const locate = (member: Member): void => {
    if (slow.nodes === 0 || member.inTime > 0) return;
    for (const span of member.picker.slowOnly(SWARM_LIMITS.located)) {
      if (queue.now - (member.located.get(span) ?? -Infinity) < SWARM_LIMITS.stallMs / 1000) continue;
      member.located.set(span, queue.now);
      totals.distributor += 2;
      totals.directory++;
      queue.after(2 * latencyS, () => {
        const isUseless = (other: Member) => other === member || member.rates?.isSlow(String(other.index)) === true;
        const holders = joined.filter((other) => other.have[span] === 1 && !isUseless(other));
        const first = Math.floor(random() * holders.length);
        for (const other of [...holders.slice(first), ...holders.slice(0, first)].slice(0, LOCATED_HOLDERS)) {
          if (!member.neighbours.includes(other.index)) meet(member, other);
        }
        const lease = leases.get(span);
        if (holders.length > 0) work(member);
        else if ((lease === undefined || aged.includes(span)) && member.picker.isWanted(span)) {
          if (lease !== undefined) aged.splice(aged.indexOf(span), 1);
          read(member, span);
        }
      });
    }
  };

  const grantLeases = (): void => {
    for (;;) {
      const unread = aged.find((span) => leases.has(span)) ?? nextUnread;
      if (unread >= spans || outstanding >= LEASE_LIMITS.outstanding || waiting.length === 0) return;
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
          unread: [unread],
          late: aged.flatMap((span) => leases.get(span)?.member.index ?? []).map(String),
        },
        random,
      );
      for (const grant of grants) {
        const member = at(Number(grant.node));
        waiting.splice(waiting.indexOf(member), 1);
        member.waiting = false;
        for (const span of grant.spans) {
          // Not again to the one that was too slow.
          if (leases.get(span)?.member === member) return;
          if (span === nextUnread) nextUnread++;
          else aged.splice(aged.indexOf(span), 1);
          read(member, span);
        }
      }
    }
  };

  const read = (member: Member, span: number): void => {
    outstanding++;
    member.inTime++;
    totals.reads++;
    totals.distributor += 2;
    const lease = { member, sinceS: queue.now };
    leases.set(span, lease);
    let out = true;
    const end = (): void => {
      if (out) outstanding--;
      out = false;
    };
    const sweep = (): void => {
      if (leases.get(span) !== lease) return;
      if (queue.now - lease.sinceS < ages.terms.ageMs / 1000) {
        queue.after(SWEEP_S, sweep);
        return;
      }
      aged.push(span);
      end();
      for (const other of joined) work(other);
    };
    queue.after(SWEEP_S, sweep);
    queue.after(latencyS, () => {
      member.picker.reserve(span);
      queue.after(latencyS, () => {
        const startS = queue.now;
        links.send(registry, member.index, spanBytes, () => {
          member.inTime--;
          member.rates?.registryTook(spanBytes, (queue.now - startS) * 1000);
          if (leases.get(span) === lease) {
            ages.took((queue.now - lease.sinceS) * 1000);
            for (const other of leases.values()) if (other.member === member) other.sinceS = queue.now;
          }
          queue.after(2 * latencyS, () => {
            end();
            grantLeases();
          });
          queue.after(latencyS, () => got(member, span));
        });
      });
    });
  };

  for (const member of members) {
    queue.after(member.isSlow ? 0 : random() * (options.spreadS ?? 0.001), () => join(member));
  }
  queue.run(EVENT_LIMIT);
  const expected = count - slow.nodes;
  if (finished !== expected) throw new Error(`${expected - finished} of ${expected} nodes have not got everything`);
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
