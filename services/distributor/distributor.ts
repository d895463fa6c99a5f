import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import type { Bus } from '#shared/bus/bus.ts';
import type { Digest } from '#shared/digest/digest.ts';
import {
  CapabilityError,
  issueCapability,
  issueReporter,
  textOfPublicKey,
  verifyReporter,
} from '#shared/distribution/capability.ts';
import {
  decodeMessage,
  DISTRIBUTION_VERSION,
  encodeMessage,
  helloRequest,
  joinRequest,
  locateRequest,
  SUBJECTS,
  updateMessage,
  viewRequest,
  type HelloReply,
  type JoinReply,
  type LocateReply,
  type NodeRecord,
  type UpdateMessage,
  type ViewReply,
} from '#shared/distribution/messages.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { AdmissionControl } from './admission.ts';
import type { ChunkDirectory } from './chunk-directory.ts';
import type { DistributorMetrics } from './distributor-metrics.ts';
import { chooseLeases, LEASE_LIMITS, LeaseAges } from './lease-policy.ts';
import { chooseNeighbours } from './neighbour-policy.ts';
import { REPORT_LIMITS, suspectsOf } from './report-policy.ts';

export const DISTRIBUTOR_TIMES = {
  /** Nodes say hello this often. */
  renewMs: 3_000,
  /** A node silent for so long has gone. */
  silentMs: 10_000,
  capabilityMs: 10 * 60_000,
} as const;

/** Members that a joining node's neighbours are chosen from. */
const NEIGHBOUR_SAMPLE = 40;
/** Layers of which this replica looks whether a lease has run out. */
const WATCHED_LAYERS = 10_000;
const WATCH_MS = 60_000;
const UNREAD_LOOKED_AT = 16;
/** A message of the bus holds some 700 KiB. */
const VIEW_LIMITS = { nodes: 1_000, layers: 500, registries: 100 } as const;
const NODES_COUNTED = 100_000;

export interface DistributorDeps {
  readonly bus: Bus;
  readonly directory: ChunkDirectory;
  readonly admission: AdmissionControl;
  /** Whose layers are shared, as the settings say. */
  readonly registries: readonly string[];
  readonly metrics: DistributorMetrics;
  readonly logger: Logger;
  readonly now?: () => number;
  readonly random?: () => number;
}

/**
 * One replica: answers nodes, and hands out what is to be read from registries. Everything it knows is in the directory, so any
 * replica may answer any message, and one that dies takes nothing with it.
 */
export class Distributor {
  readonly #deps: DistributorDeps;
  readonly #now: () => number;
  readonly #random: () => number;
  /** Layers under way, with when they were last spoken of. */
  readonly #watched = new Map<Digest, number>();
  readonly #advancing = new Map<Digest, { again: boolean; done: Promise<void> }>();
  /** From what this replica hears; of all layers, since it is links and machines that make reads slow. */
  readonly #ages = new LeaseAges();
  /** Nodes that several others have reported, as of the last sweep. */
  #suspects: ReadonlySet<string> = new Set();
  #key: { readonly epoch: string; readonly privateKey: KeyObject; readonly publicText: string } | undefined;

  constructor(deps: DistributorDeps) {
    this.#deps = deps;
    this.#now = deps.now ?? Date.now;
    this.#random = deps.random ?? Math.random;
  }

  async hello(bytes: Uint8Array): Promise<HelloReply> {
    const { record, figures } = decodeMessage(helloRequest, bytes, 'a hello');
    const key = await this.#keyOfNow();
    await this.#deps.directory.nodes.put(record, this.#now(), figures);
    return {
      version: DISTRIBUTION_VERSION,
      epoch: key.epoch,
      publicKey: key.publicText,
      renewMs: DISTRIBUTOR_TIMES.renewMs,
    };
  }

  async join(bytes: Uint8Array, signal: AbortSignal): Promise<JoinReply> {
    const { directory, admission } = this.#deps;
    const request = decodeMessage(joinRequest, bytes, 'a request to join');
    const { record, layer, spanCount, repository, authorization } = request;
    const now = this.#now();
    const admitted = await admission.admit(layer, repository, authorization, now, signal);
    if (!admitted.admitted) return { outcome: 'refused', reason: admitted.reason };
    const key = await this.#keyOfNow();
    const { layers, nodes } = directory;
    const have = Buffer.from(request.have, 'base64');
    await Promise.all([
      nodes.put(record, now),
      layers.change(layer, record.node, { ...wantsOf(request), spanCount, have }, now, this.#ages.terms),
    ]);
    // After the node itself has come in: of two that join at the same time at least one sees the other.
    const members = await layers.members(layer, NEIGHBOUR_SAMPLE + 1);
    const known = await nodes.get(members.sample);
    const candidates = known.map(({ node, zone }) => ({ node, zone, suspected: this.#suspects.has(node) }));
    const chosen = new Set(chooseNeighbours(record, candidates, this.#random));
    this.#advanceSoon(layer);
    const right = { layer, record, expiresMs: now + DISTRIBUTOR_TIMES.capabilityMs };
    return {
      outcome: 'joined',
      epoch: key.epoch,
      capability: issueCapability(right, key.privateKey),
      reporter: issueReporter(right, key.privateKey),
      expiresInMs: DISTRIBUTOR_TIMES.capabilityMs,
      members: Math.max(1, members.total),
      neighbours: known.filter(({ node }) => chosen.has(node)),
    };
  }

  async locate(bytes: Uint8Array): Promise<LocateReply> {
    const { layers, nodes } = this.#deps.directory;
    const { layer, ...wanted } = decodeMessage(locateRequest, bytes, 'a request to locate spans');
    const located = await layers.locate(layer, wanted, this.#now(), this.#ages.terms);
    const records = new Map<string, NodeRecord>();
    const names = [...new Set(located.flatMap(({ from }) => from))];
    for (const record of await nodes.get(names)) records.set(record.node, record);
    const leased = located.flatMap((one) => (one.leased ? [one.span] : []));
    this.#deps.metrics.leases.inc({ how: 'asked' }, leased.length);
    this.#watch(layer);
    return {
      leased,
      elsewhere: located
        .filter((one) => !one.leased)
        .map(({ span, from }) => ({ span, from: this.#suspectsLast(from).flatMap((name) => records.get(name) ?? []) })),
    };
  }

  async update(bytes: Uint8Array): Promise<void> {
    await this.#take(decodeMessage(updateMessage, bytes, 'an update'));
  }

  async view(bytes: Uint8Array): Promise<ViewReply> {
    decodeMessage(viewRequest, bytes, 'a request for the view');
    const { directory, registries } = this.#deps;
    const [epoch, nodes, layers] = await Promise.all([
      directory.epoch(),
      directory.nodes.all(NODES_COUNTED),
      directory.layers.summaries(VIEW_LIMITS.layers),
    ]);
    const shown = nodes.slice(0, VIEW_LIMITS.nodes);
    const figures = await directory.nodes.figures(shown.map(({ node }) => node));
    return {
      epoch,
      registries: registries.slice(0, VIEW_LIMITS.registries),
      nodeCount: nodes.length,
      nodes: shown.map((record) => ({
        record,
        figures: figures.get(record.node),
        suspected: this.#suspects.has(record.node),
      })),
      layers: [...layers],
    };
  }

  /** To be called every second or so: nodes that have gone, leases that have run out, a directory that was emptied. */
  async sweep(): Promise<void> {
    const { directory, metrics, logger } = this.#deps;
    const now = this.#now();
    await this.#keyOfNow();
    for (const node of await directory.nodes.silent(now - DISTRIBUTOR_TIMES.silentMs)) {
      logger.warn({ node }, 'A node has gone');
      metrics.lostNodes.inc();
      await directory.nodes.remove(node, now);
    }
    metrics.nodes.set((await directory.nodes.all(NODES_COUNTED)).length);
    this.#suspects = suspectsOf(await directory.reports.since(now - REPORT_LIMITS.keptMs));
    metrics.suspects.set(this.#suspects.size);
    for (const [layer, lastMs] of this.#watched) {
      if (now - lastMs > WATCH_MS) this.#watched.delete(layer);
      else await this.#advance(layer);
    }
  }

  /** Resolves when what is under way is done. */
  async idle(): Promise<void> {
    await Promise.allSettled(Array.from(this.#advancing.values(), ({ done }) => done));
  }

  async #take(message: UpdateMessage): Promise<void> {
    const { layers, nodes } = this.#deps.directory;
    const { node } = message;
    const now = this.#now();
    switch (message.kind) {
      case 'gone':
        await nodes.remove(node, now);
        return;
      case 'left':
        await layers.leave(message.layer, node, now);
        return;
      case 'holds': {
        const { layer, spanCount } = message;
        const have = Buffer.from(message.have, 'base64');
        await layers.change(layer, node, { spanCount, have }, now, this.#ages.terms);
        return;
      }
      case 'changed': {
        const { layer, spanCount, gained, read, released } = message;
        const change = { ...wantsOf(message), spanCount, gained, read, released };
        for (const ms of await layers.change(layer, node, change, now, this.#ages.terms)) this.#ages.took(ms);
        this.#advanceSoon(layer);
        return;
      }
      case 'bad':
        await this.#report(message, now);
    }
  }

  /** Only a node that has shown that it can pull the layer may report, and only with what this distributor gave it. */
  async #report(message: Extract<UpdateMessage, { readonly kind: 'bad' }>, now: number): Promise<void> {
    const { directory, metrics, logger } = this.#deps;
    const { node, layer, suspect } = message;
    const { privateKey } = await this.#keyOfNow();
    try {
      const { record } = verifyReporter(message.reporter, layer, createPublicKey(privateKey), now);
      if (record.node !== node || suspect === node) throw new CapabilityError('forged', 'A report in another name');
      await directory.reports.add({ suspect, reporter: record.host }, now);
      metrics.reports.inc({ outcome: 'taken' });
      logger.warn({ node, suspect, layer }, 'A node reports that another sends wrong bytes');
    } catch (error) {
      if (!(error instanceof CapabilityError)) throw error;
      metrics.reports.inc({ outcome: 'refused' });
      logger.debug({ err: error, node, suspect }, 'Refused a report');
    }
  }

  #suspectsLast(nodes: readonly string[]): string[] {
    return nodes.toSorted((a, b) => Number(this.#suspects.has(a)) - Number(this.#suspects.has(b)));
  }

  #watch(layer: Digest): void {
    this.#watched.delete(layer);
    this.#watched.set(layer, this.#now());
    for (const oldest of this.#watched.keys()) {
      if (this.#watched.size <= WATCHED_LAYERS) break;
      this.#watched.delete(oldest);
    }
  }

  #advanceSoon(layer: Digest): void {
    this.#watch(layer);
    const running = this.#advancing.get(layer);
    if (running !== undefined) {
      running.again = true;
      return;
    }
    const state = { again: false, done: Promise.resolve() };
    this.#advancing.set(layer, state);
    state.done = (async () => {
      try {
        do {
          state.again = false;
          await this.#advance(layer);
        } while (state.again);
      } catch (error) {
        // The next update or sweep tries again.
        this.#deps.logger.debug({ err: error, layer }, 'Cannot hand out leases');
      } finally {
        this.#advancing.delete(layer);
      }
    })();
  }

  /** Hands out what may be read from the registry now. */
  async #advance(layer: Digest): Promise<void> {
    const { bus, directory, metrics } = this.#deps;
    const limits = { samples: LEASE_LIMITS.samples, unread: UNREAD_LOOKED_AT };
    const { terms } = this.#ages;
    const view = await directory.layers.look(layer, this.#now(), terms, limits);
    const grants = chooseLeases(view, this.#random);
    if (grants.length === 0) return;
    for (const { node, spans } of await directory.layers.grant(layer, grants, this.#now(), terms)) {
      metrics.leases.inc({ how: 'in-turn' }, spans.length);
      // A message that is lost: the lease runs out and is given on.
      bus.messages.send(
        SUBJECTS.lease(node),
        encodeMessage({ version: DISTRIBUTION_VERSION, layer, spans: [...spans] }),
      );
    }
  }

  /** The signing key that all replicas share. When the directory was emptied all nodes are told to say again what they hold. */
  async #keyOfNow(): Promise<{ epoch: string; privateKey: KeyObject; publicText: string }> {
    const { directory, bus, metrics, logger } = this.#deps;
    const epoch = await directory.epoch();
    if (this.#key?.epoch === epoch) return this.#key;
    const privateKey = await directory.secret(
      () => generateKeyPairSync('ed25519').privateKey.export({ format: 'der', type: 'pkcs8' }).toString('base64'),
      (text) => createPrivateKey({ key: Buffer.from(text, 'base64'), format: 'der', type: 'pkcs8' }),
    );
    const before = this.#key;
    this.#key = { epoch, privateKey, publicText: textOfPublicKey(privateKey) };
    if (before !== undefined && before.epoch !== epoch) {
      logger.warn('The directory was emptied: nodes are asked what they hold');
      metrics.forgotten.inc();
    }
    // Also at our start: another replica may have died before it said so.
    bus.messages.send(SUBJECTS.forgotten, encodeMessage({ version: DISTRIBUTION_VERSION, epoch }));
    return this.#key;
  }
}

function wantsOf(message: {
  readonly wants?: string | undefined;
  readonly waiting?: { readonly load: number; readonly room: number } | undefined;
  readonly fetching?: readonly number[] | undefined;
}): {
  wants: Uint8Array | undefined;
  waiting: { load: number; room: number } | undefined;
  fetching: readonly number[] | undefined;
} {
  const { wants, waiting, fetching } = message;
  return { wants: wants === undefined ? undefined : Buffer.from(wants, 'base64'), waiting, fetching };
}
