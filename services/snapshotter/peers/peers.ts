import { randomBytes } from 'node:crypto';
import type { Bus } from '#shared/bus/bus.ts';
import { DISTRIBUTION_LIMITS, type NodeFigures } from '#shared/distribution/messages.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { Registry } from '#shared/telemetry/metrics.ts';
import type { SpanSource } from '../layers/span-source.ts';
import { BadPeers } from './bad-peers.ts';
import { DistributorLink } from './distributor-link.ts';
import { PackedSpans } from './packed-spans.ts';
import { PackingChoice } from './packing-choice.ts';
import { PeerClient } from './peer-client.ts';
import { PeerMetrics } from './peer-metrics.ts';
import { PeerServer } from './peer-server.ts';
import { advertisedHost, loadPeerTls, type PeerValues } from './peer-settings.ts';
import { PeerSource } from './peer-source.ts';
import type { SpanHolder } from './span-holder.ts';
import { SourceRates } from './source-rates.ts';
import { DOWNLOAD_PACE, TransferPace } from './transfer-pace.ts';
import { UpdateOutbox } from './update-outbox.ts';

export interface PeersOptions {
  readonly values: PeerValues;
  readonly nodeName: string;
  readonly bus: Bus;
  readonly holder: SpanHolder;
  readonly registry: Pick<RegistryClient, 'authorizationOf'>;
  /** Where spans come from that this node reads for all. */
  readonly source: SpanSource;
  readonly metrics: Registry;
  readonly logger: Logger;
}

/** This node's part in the distribution of layers: gives spans, gets spans, and tells the distributor. */
export class Peers implements AsyncDisposable {
  readonly source: PeerSource;
  readonly server: PeerServer;
  readonly link: DistributorLink;
  readonly #outbox: UpdateOutbox;
  readonly #closing: AsyncDisposableStack;

  private constructor(
    parts: Pick<Peers, 'source' | 'server' | 'link'>,
    outbox: UpdateOutbox,
    closing: AsyncDisposableStack,
  ) {
    this.source = parts.source;
    this.server = parts.server;
    this.link = parts.link;
    this.#outbox = outbox;
    this.#closing = closing;
  }

  /** @throws SettingsError, or what the socket says */
  static async open(options: PeersOptions): Promise<Peers> {
    const { values, bus, holder, registry, logger } = options;
    const tls = await loadPeerTls(values);
    const metrics = new PeerMetrics(options.metrics);
    await using closing = new AsyncDisposableStack();
    let link: DistributorLink | undefined;
    let source: PeerSource | undefined;
    const packed = closing.use(new PackedSpans());
    const server = closing.use(
      await PeerServer.listen({
        ...values.peerListen,
        holder,
        packed,
        packs: values.peerPacking !== 'never',
        publicKey: () => link?.publicKey,
        arriving: (layer, span) => source?.arriving(layer, span) === true,
        demanded: (layer, span, until) => source?.demanded(layer, span, until),
        followed: (layer, by) => source?.followed(layer, by),
        bytesPerS: values.peerUploadRate,
        tls,
        metrics,
        logger,
      }),
    );
    const record = {
      // Another one after each start: what others believe of the one before ends with it.
      node: `${options.nodeName.replaceAll(/[^A-Za-z0-9_-]/g, '-').slice(0, 50)}-${randomBytes(4).toString('hex')}`,
      host: advertisedHost(values),
      port: server.port,
      zone: values.zone,
      tls: tls !== undefined,
    };
    const rates = new SourceRates();
    const figures = async (): Promise<NodeFigures> => ({
      registryBytes: await metrics.registryBytes(),
      peerBytes: await metrics.valueOf(metrics.received),
      givenBytes: await metrics.valueOf(metrics.sent),
      feeds: [...rates.feeds(DISTRIBUTION_LIMITS.feeds)],
    });
    link = closing.use(new DistributorLink({ bus, record, logger, metrics, figures }));
    const outbox = closing.use(new UpdateOutbox(link, holder));
    const client = new PeerClient(tls);
    closing.defer(() => client.close());
    source = new PeerSource({
      link,
      outbox,
      client,
      registry: options.source,
      authorizationOf: (repository, signal) => registry.authorizationOf(repository, signal),
      holder,
      packed,
      packing: new PackingChoice(values.peerPacking),
      claims: bus.claims,
      badPeers: new BadPeers(),
      pace: new TransferPace(DOWNLOAD_PACE),
      rates,
      metrics,
      logger,
    });
    const opened = source;
    closing.defer(() => opened.close());
    logger.info({ node: record.node, host: record.host, port: record.port, tls: record.tls }, 'Sharing layers');
    return new Peers({ source, server, link }, outbox, closing.move());
  }

  /** The holder knows its layers now. */
  announce(): void {
    this.#outbox.everything();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#closing.disposeAsync();
  }
}
