import { createHash, randomUUID } from 'node:crypto';
import { Cluster } from 'ioredis';
import { digestOfHex, hexOf, type Digest } from '#shared/digest/digest.ts';
import { nodeFigures, nodeRecord, type NodeFigures, type NodeRecord } from '#shared/distribution/messages.ts';
import { SpanSet } from '#shared/distribution/span-set.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type {
  ChunkDirectory,
  LayerChange,
  LayerSummary,
  LayerTable,
  Located,
  LocateWanted,
  NodeTable,
  ReportTable,
} from './chunk-directory.ts';
import { LOCATED_HOLDERS, REPORTS_KEPT } from './directory-limits.ts';
import type { Grant, LeaseTerms, LeaseView } from './lease-policy.ts';
import { REPORT_LIMITS, type Report } from './report-policy.ts';
import { openRedis, type RedisClient } from './redis-client.ts';
import { answersOf, countOf, GarbageError } from './redis-garbage.ts';
import { RedisHealing, type SuspectKey } from './redis-healing.ts';
import { CHANGE, GRANT, LAYER_KEYS, LEASE, LEAVE, LOOK } from './redis-scripts.ts';

const EPOCH = 'kd:epoch';
const SECRET = 'kd:secret';
const LAYERS = 'kd:layers';
const NODES = 'kd:{nodes}:records';
const SEEN = 'kd:{nodes}:seen';
const FIGURES = 'kd:{nodes}:figures';
/** Sorted set of suspect|reporter; score = when. */
const REPORTS = 'kd:reports';
/** Layers of a node: what must be left when it has gone. */
const layersOf = (node: string): string => `kd:node:${node}:layers`;
const REPORT_KEYS: readonly SuspectKey[] = [{ name: REPORTS, type: 'zset' }];
const markOf = (i: number): string => `${EPOCH}:${i}`;
const NODE_KEYS: readonly SuspectKey[] = [
  { name: NODES, type: 'hash' },
  { name: SEEN, type: 'zset' },
  { name: FIGURES, type: 'hash' },
];
/** A layer that nobody speaks of for so long is forgotten; nodes say hello every few seconds and layers again when asked. */
const KEEP_MS = 24 * 60 * 60 * 1000;
/**
 * Of a Redis Cluster each server can lose its part alone: marks in so many slots (more than a few servers) make that another epoch,
 * looked at so often.
 */
const MARKS = 64;
const MARKS_MS = 500;
/** Members looked at for a holder of a span. */
const LOCATE_SAMPLE = 48;

/**
 * The directory in Redis or a Redis Cluster: each call is one or two round trips. What it finds there that is none of its own (values of
 * other types, or cut short, or wrong) it deletes, and begins another epoch, so that nodes say again what was lost with it.
 */
export class RedisDirectory implements ChunkDirectory {
  readonly #redis: RedisClient;
  readonly #healing: RedisHealing;
  #marks: { readonly atMs: number; readonly epoch: Promise<string> } | undefined;

  constructor(options: {
    readonly url: string;
    readonly logger: Logger;
    /** Something was found that is none of its own, and was deleted. */
    readonly onGarbage?: () => void;
  }) {
    this.#redis = openRedis(options.url, options.logger);
    const found = options.onGarbage ?? (() => {});
    this.#healing = new RedisHealing(this.#redis, options.logger, found, async () => {
      this.#marks = undefined;
      await this.#redis.unlink(this.#redis instanceof Cluster ? markOf(0) : EPOCH);
    });
  }

  get ready(): boolean {
    return this.#redis.status === 'ready';
  }

  async epoch(): Promise<string> {
    await this.#healing.settle();
    if (!(this.#redis instanceof Cluster)) return await this.#mark(EPOCH);
    const now = performance.now();
    if (this.#marks === undefined || now - this.#marks.atMs > MARKS_MS) {
      const keys = Array.from({ length: MARKS }, (_, i) => markOf(i));
      const epoch = Promise.all(keys.map(async (name) => await this.#mark(name))).then((marks) =>
        createHash('sha256').update(marks.join()).digest('hex'),
      );
      const marks = { atMs: now, epoch };
      this.#marks = marks;
      epoch.catch(() => {
        if (this.#marks === marks) this.#marks = undefined;
      });
    }
    return await this.#marks.epoch;
  }

  async secret<T>(make: () => string, parse: (text: string) => T): Promise<T> {
    const read = async () => {
      await this.#redis.set(SECRET, make(), 'NX');
      const text = (await this.#redis.get(SECRET)) ?? '';
      try {
        return parse(text);
      } catch (cause) {
        throw new GarbageError('Cannot read the secret in Redis', { cause });
      }
    };
    return await this.#sound([{ name: SECRET }], read);
  }

  readonly nodes: NodeTable = {
    put: async (record, nowMs, figures) => {
      const { node } = record;
      await this.#sound(NODE_KEYS, async () => {
        const all = this.#redis.multi().hset(NODES, node, JSON.stringify(record)).zadd(SEEN, nowMs, node);
        if (figures !== undefined) all.hset(FIGURES, node, JSON.stringify(figures));
        answersOf(await all.exec());
      });
    },
    get: async (nodes) => {
      if (nodes.length === 0) return [];
      return (await this.#sound(NODE_KEYS, async () => await this.#redis.hmget(NODES, ...nodes))).flatMap(recordOf);
    },
    all: async (limit) => {
      const nodes = await this.#sound(NODE_KEYS, async () => await this.#redis.zrange(SEEN, 0, limit - 1));
      return await this.nodes.get(nodes);
    },
    figures: async (nodes) => {
      if (nodes.length === 0) return new Map();
      const texts = await this.#sound(NODE_KEYS, async () => await this.#redis.hmget(FIGURES, ...nodes));
      return new Map(
        nodes.flatMap((node, i) => figuresOf(texts[i] ?? null).map((figures) => [node, figures] as const)),
      );
    },
    silent: async (beforeMs) =>
      await this.#sound(NODE_KEYS, async () => await this.#redis.zrangebyscore(SEEN, 0, `(${beforeMs}`)),
    remove: async (node, nowMs) => {
      const own: SuspectKey[] = [{ name: layersOf(node), type: 'set' }];
      const known = await this.#sound(own, async () => await this.#redis.smembers(layersOf(node)));
      for (const layer of layersIn(known)) await this.layers.leave(layer, node, nowMs);
      await this.#redis.unlink(layersOf(node));
      await this.#sound(NODE_KEYS, async () =>
        answersOf(await this.#redis.multi().hdel(NODES, node).hdel(FIGURES, node).zrem(SEEN, node).exec()),
      );
    },
  };

  readonly layers: LayerTable = {
    change: async (layer, node, change, nowMs, terms) =>
      await this.#ofLayer(layer, node, async () => await this.#change(layer, node, change, nowMs, terms)),
    leave: async (layer, node) =>
      await this.#ofLayer(layer, node, async () => {
        let left = await this.#eval(LEAVE, layer, node, [], [node, 0]);
        if (left === -1) left = await this.#eval(LEAVE, layer, node, await this.#bitmapsBut(layer, node), [node, 1]);
        await this.#redis.srem(layersOf(node), hexOf(layer));
        if (left === 0) await this.#redis.srem(LAYERS, hexOf(layer));
      }),
    members: async (layer, count) =>
      await this.#ofLayer(layer, '', async () => {
        const [total, sample] = await Promise.all([
          this.#redis.scard(key(layer, 'members')),
          this.#redis.srandmember(key(layer, 'members'), count),
        ]);
        return { total, sample };
      }),
    look: async (layer, nowMs, terms, limits) =>
      await this.#ofLayer(layer, '', async () => await this.#look(layer, nowMs, terms, limits)),
    grant: async (layer, grants, nowMs, { ttlMs }) => {
      if (grants.length === 0) return [];
      const list = grants.flatMap(({ node, spans }) => [node, spans.length, ...spans]);
      const given = (await this.#ofLayer(
        layer,
        '',
        async () => await this.#eval(GRANT, layer, '', [], [nowMs, ttlMs, ...list]),
      )) as string[];
      const accepted: Grant[] = [];
      for (let at = 0; at < given.length; ) {
        const count = Number(given[at + 1]);
        accepted.push({ node: given[at] ?? '', spans: given.slice(at + 2, at + 2 + count).map(Number) });
        at += 2 + count;
      }
      return accepted;
    },
    locate: async (layer, wanted, nowMs, terms) =>
      await this.#ofLayer(layer, '', async () => await this.#locate(layer, wanted, nowMs, terms)),
    summaries: async (limit) => {
      const known = await this.#sound([{ name: LAYERS, type: 'set' }], async () => await this.#redis.smembers(LAYERS));
      const layers = layersIn(known).slice(0, limit);
      const summary = async (layer: Digest) => await this.#ofLayer(layer, '', async () => await this.#summary(layer));
      return (await Promise.all(layers.map(summary))).flat();
    },
  };

  readonly reports: ReportTable = {
    add: async ({ suspect, reporter }, nowMs) => {
      await this.#sound(REPORT_KEYS, async () => {
        const many = this.#redis.multi().zadd(REPORTS, nowMs, `${suspect}|${reporter}`);
        many.zremrangebyrank(REPORTS, 0, -REPORTS_KEPT - 1).pexpire(REPORTS, REPORT_LIMITS.keptMs);
        return answersOf(await many.exec());
      });
    },
    since: async (ms) =>
      (await this.#sound(REPORT_KEYS, async () => await this.#redis.zrangebyscore(REPORTS, ms, '+inf'))).map(reportOf),
  };

  async [Symbol.asyncDispose](): Promise<void> {
    this.#redis.disconnect();
  }

  /** What the first one has written there. */
  async #mark(name: string): Promise<string> {
    return await this.#sound([{ name, type: 'string' }], async () => {
      await this.#redis.set(name, randomUUID(), 'NX');
      return (await this.#redis.get(name)) ?? '';
    });
  }

  async #sound<T>(suspects: readonly SuspectKey[], work: () => Promise<T>): Promise<T> {
    return await this.#healing.sound(() => Promise.resolve(suspects), work);
  }

  /** What works with a layer's keys and lists of layers. All that is known of the layer goes with any of it that is garbage. */
  async #ofLayer<T>(layer: Digest, node: string, work: () => Promise<T>): Promise<T> {
    const suspects = async (): Promise<SuspectKey[]> => {
      const [members, seen] = await Promise.all([
        this.#redis.smembers(key(layer, 'members')).catch(() => []),
        this.#redis.zrange(SEEN, 0, -1).catch(() => []),
      ]);
      return [
        { name: LAYERS, type: 'set' },
        { name: layersOf(node), type: 'set' },
        ...LAYER_KEYS.map((name) => ({ name: key(layer, name) })),
        ...[...new Set([node, ...members, ...seen])].map((one) => ({ name: bitsKey(layer, one) })),
      ];
    };
    return await this.#healing.sound(suspects, work);
  }

  async #change(
    layer: Digest,
    node: string,
    change: LayerChange,
    nowMs: number,
    { ttlMs, ageMs }: LeaseTerms,
  ): Promise<readonly number[]> {
    const { spanCount } = change;
    // A member may hold less than it did; what it fetches it goes on fetching.
    const anew = change.have !== undefined && (await this.#redis.sismember(key(layer, 'members'), node)) === 1;
    const others = anew ? await this.#bitmapsBut(layer, node) : [];
    const hex = hexOf(layer);
    const lists = {
      spans: spanCount,
      anew,
      gained: [...(change.gained ?? []), ...(change.have === undefined ? [] : valid(change.have, spanCount))],
      read: change.read ?? [],
      released: change.released ?? [],
      fetching: change.fetching ?? [],
      wants: change.wants === undefined ? [] : valid(change.wants, spanCount),
      ...(change.waiting === undefined ? {} : { waiting: `${change.waiting.load}|${change.waiting.room}` }),
    };
    const [took] = await Promise.all([
      this.#eval(CHANGE, layer, node, others, [node, nowMs, ttlMs, ageMs, KEEP_MS, JSON.stringify(lists)]),
      this.#redis.sadd(LAYERS, hex),
      this.#redis.sadd(layersOf(node), hex),
      this.#redis.pexpire(layersOf(node), KEEP_MS),
    ]);
    return took as number[];
  }

  async #bitmapsBut(layer: Digest, node: string): Promise<readonly string[]> {
    const members = await this.#redis.smembers(key(layer, 'members'));
    return members.filter((member) => member !== node).map((member) => bitsKey(layer, member));
  }

  async #look(
    layer: Digest,
    nowMs: number,
    { ageMs }: LeaseTerms,
    { samples, unread: most }: { readonly samples: number; readonly unread: number },
  ): Promise<LeaseView> {
    const answer = (await this.#eval(LOOK, layer, '', [], [nowMs, ageMs, samples, most])) as [
      number,
      number,
      string[],
      string[],
      string[],
    ];
    const [members, outstanding, flat, unread, late] = answer;
    const waiting = [];
    for (let i = 0; i + 1 < flat.length; i += 2) {
      const [load, room] = (flat[i + 1] ?? '').split('|').map((text) => countOf(text, 'who waits'));
      waiting.push({ node: flat[i] ?? '', load: load ?? 0, room: room ?? 0 });
    }
    const spans = unread.map((span) => countOf(span, 'what is unread'));
    return { members, outstanding, waiting, unread: spans, late: [...new Set(late)] };
  }

  async #locate(
    layer: Digest,
    { node, spans, without, slow }: LocateWanted,
    nowMs: number,
    { ttlMs, ageMs }: LeaseTerms,
  ): Promise<readonly Located[]> {
    const members = await this.#redis.srandmember(key(layer, 'members'), LOCATE_SAMPLE);
    const useless = new Set([node, ...without, ...slow]);
    const sample = members.filter((one) => !useless.has(one));
    const bitmaps =
      sample.length === 0 ? [] : await this.#redis.mgetBuffer(...sample.map((one) => bitsKey(layer, one)));
    const holders = new Map(
      spans.map((span) => [
        span,
        sample.filter((_, i) => hasRedisBit(bitmaps[i] ?? undefined, span)).slice(0, LOCATED_HOLDERS),
      ]),
    );
    const missing = spans.filter((span) => holders.get(span)?.length === 0);
    const fetchers =
      missing.length === 0
        ? []
        : ((await this.#eval(
            LEASE,
            layer,
            '',
            [],
            [node, nowMs, ttlMs, ageMs, JSON.stringify(without), ...missing],
          )) as string[]);
    return spans.map((span): Located => {
      const from = holders.get(span) ?? [];
      if (from.length > 0) return { span, from, leased: false };
      const fetcher = fetchers[missing.indexOf(span)] ?? '';
      return fetcher === '' ? { span, from: [], leased: true } : { span, from: [fetcher], leased: false };
    });
  }

  async #summary(layer: Digest): Promise<LayerSummary[]> {
    const [[spans, reads], members, held, leases, unread, readSpans] = await Promise.all([
      this.#redis.hmget(key(layer, 'meta'), 'spans', 'reads'),
      this.#redis.smembers(key(layer, 'members')),
      this.#redis.bitcount(key(layer, 'any')),
      this.#redis.hlen(key(layer, 'leases')),
      this.#redis.zcard(key(layer, 'unread')),
      this.#redis.bitcount(key(layer, 'read')),
    ]);
    if (spans === undefined || spans === null) return [];
    const counts = await Promise.all(members.map(async (node) => await this.#redis.bitcount(bitsKey(layer, node))));
    const copies = counts.reduce((sum, count) => sum + count, 0);
    const counted = {
      members: members.length,
      held,
      copies,
      reads: countOf(reads ?? '0', 'reads'),
      readSpans,
      leases,
      unread,
    };
    return [{ layer, spanCount: countOf(spans, 'how many spans there are'), ...counted }];
  }

  async #eval(
    script: string,
    layer: Digest,
    node: string,
    moreKeys: readonly string[],
    args: readonly (string | number)[],
  ): Promise<unknown> {
    const keys = [...LAYER_KEYS.map((name) => key(layer, name)), bitsKey(layer, node), ...moreKeys];
    return await this.#redis.eval(script, keys.length, ...keys, ...args);
  }
}

function key(layer: Digest, name: (typeof LAYER_KEYS)[number]): string {
  return `kd:{${hexOf(layer)}}:${name}`;
}

function bitsKey(layer: Digest, node: string): string {
  return `kd:{${hexOf(layer)}}:b:${node}`;
}

function valid(bits: Uint8Array, spanCount: number): number[] {
  return [...new SpanSet(spanCount, bits).spans()].filter((span) => span < spanCount);
}

/** Redis counts a byte's bits from its top. */
function hasRedisBit(bits: Buffer | undefined, span: number): boolean {
  return ((bits?.[span >> 3] ?? 0) & (0x80 >> (span & 7))) !== 0;
}

/** Of digests in hex; others are none of ours. */
function layersIn(hexes: readonly string[]): Digest[] {
  return hexes.filter((hex) => /^[0-9a-f]{64}$/.test(hex)).map(digestOfHex);
}

/** What is none of ours is over when the node says it next, every few seconds. */
function recordOf(text: string | null): NodeRecord[] {
  const parsed = nodeRecord.safeParse(jsonOf(text));
  return parsed.success ? [parsed.data] : [];
}

function figuresOf(text: string | null): NodeFigures[] {
  const parsed = nodeFigures.safeParse(jsonOf(text));
  return parsed.success ? [parsed.data] : [];
}

function jsonOf(text: string | null): unknown {
  try {
    return text === null ? undefined : JSON.parse(text);
  } catch {
    return undefined;
  }
}

function reportOf(member: string): Report {
  const [suspect = '', reporter = ''] = member.split('|');
  return { suspect, reporter };
}
