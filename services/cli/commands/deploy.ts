import { randomUUID } from 'node:crypto';
import { Command, Option } from 'commander';
import type { Bus, Subscription } from '#shared/bus/bus.ts';
import { SettingsError } from '#shared/config/settings.ts';
import { subjectOf, toBus, fromBus, type ImageIndexed } from '#shared/events/image-events.ts';
import { decodeIndexingFailure, INDEXING_FAILED } from '#shared/events/indexing-failure.ts';
import { formatReference, parseReference } from '#shared/registry/reference.ts';
import { clusterAccess } from '../cluster-access.ts';
import { sendToGateway } from '../gateway-access.ts';
import { wholeNumber } from '../option-values.ts';
import { untilInterrupted } from '../until-interrupted.ts';

interface Flags {
  readonly function?: string;
  readonly nats?: string;
  readonly gateway?: string;
  readonly wait?: true;
  readonly timeout: number;
  readonly json?: true;
}

/** `code`: of the indexer's error. */
export class DeployError extends Error {
  override readonly name = 'DeployError';
  readonly code: string;
  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

export function command(): Command {
  return new Command('deploy')
    .summary('make an image ready on all nodes: the event that a platform would send, by hand')
    .description(
      'Publishes function.deployed. The indexer then builds what indexes are missing, and every node pulls the image lazily.',
    )
    .argument('<image>', 'image to deploy')
    .option('--function <name>', 'name of the function (default: the repository)')
    .option('--nats <url>', 'NATS server of the cluster (default: $NATS_URL)')
    .option(
      '--gateway <url>',
      'send it to this gateway instead, such as http://127.0.0.1:8460, with the first token of $KINDLING_GATEWAY_TOKENS',
    )
    .addOption(
      new Option('--wait', 'wait until the image is indexed, or cannot be; not with --gateway').conflicts('gateway'),
    )
    .option('--timeout <seconds>', 'how long to wait at most', wholeNumber, 600)
    .option('--json', 'print as JSON')
    .action(async (image: string, flags: Flags) => {
      await untilInterrupted((signal) => deploy(image, flags, signal));
    });
}

async function deploy(image: string, flags: Flags, signal: AbortSignal): Promise<void> {
  const reference = parseReference(image);
  const id = randomUUID();
  const name = formatReference(reference);
  const data = { function: flags.function ?? reference.path, image: name };
  const event = { type: 'function.deployed', id, source: 'kindling/cli', data } as const;
  if (flags.gateway !== undefined) {
    await sendToGateway(flags.gateway, gatewayToken(), event, signal);
    print(flags, { id, ...data }, `${name} is announced (event ${id})`);
    return;
  }
  const opened = await clusterAccess(flags.nats);
  if (opened === undefined) {
    throw new SettingsError(
      'Cannot deploy: tell the NATS server of the cluster with --nats or NATS_URL, or a gateway with --gateway; on a single node "kindling pull" does the same',
    );
  }
  await using bus = opened;
  // Before the event: its answer must not pass unseen.
  await using answer = flags.wait ? new Answer(bus, name, event) : undefined;
  await bus.events.publish(toBus(event, new Date()), signal);
  if (answer === undefined) {
    print(flags, { id, ...data }, `${name} is announced (event ${id})`);
    return;
  }
  const done = await answer.wait(flags.timeout, signal);
  const lazy = done.layers.filter((layer) => layer.state === 'indexed').length;
  print(flags, { id, ...done }, `${name} is indexed: ${lazy} of ${done.layers.length} layers lazy`);
  for (const layer of done.layers) {
    if (layer.state === 'not-lazy' && flags.json !== true) console.log(`  ${layer.layer}: ${layer.reason ?? ''}`);
  }
}

/** What an indexer says to an event. */
class Answer implements AsyncDisposable {
  readonly #image: string;
  readonly #indexed = Promise.withResolvers<ImageIndexed>();
  readonly #listening: readonly Subscription[];
  /** Why it is not done yet. */
  #passing: string | undefined;

  constructor(
    { messages }: Pick<Bus, 'messages'>,
    image: string,
    event: { readonly source: string; readonly id: string },
  ) {
    this.#image = image;
    this.#indexed.promise.catch(() => undefined);
    this.#listening = [
      messages.subscribe(subjectOf('image.indexed'), undefined, (payload) => {
        const { data } = fromBus('image.indexed', payload);
        if (data.image === image && data.cause === 'deploy') this.#indexed.resolve(data);
      }),
      messages.subscribe(INDEXING_FAILED, undefined, (payload) => {
        const { source, id, code, reason, passing } = decodeIndexingFailure(payload);
        if (source !== event.source || id !== event.id) return;
        if (passing) this.#passing = reason;
        else this.#indexed.reject(new DeployError(code, `${image} is announced, but cannot be indexed: ${reason}`));
      }),
    ];
  }

  /** @throws DeployError */
  async wait(timeoutS: number, signal: AbortSignal): Promise<ImageIndexed> {
    const ends = AbortSignal.any([signal, AbortSignal.timeout(timeoutS * 1000)]);
    const onEnd = () => {
      const why =
        this.#passing ?? 'is an indexer running, and can it read the image? See its log, and: kindling events dead';
      const late = `${this.#image} is announced, but not indexed after ${timeoutS} s; ${why}`;
      this.#indexed.reject(signal.aborted ? signal.reason : new DeployError('timeout', late));
    };
    ends.addEventListener('abort', onEnd, { once: true });
    try {
      return await this.#indexed.promise;
    } finally {
      ends.removeEventListener('abort', onEnd);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const one of this.#listening) await one[Symbol.asyncDispose]();
  }
}

/** Of the environment, where no other user of the machine reads it. */
function gatewayToken(): string {
  const token = (process.env['KINDLING_GATEWAY_TOKENS'] ?? '').split(',')[0]?.trim() ?? '';
  if (token !== '') return token;
  throw new SettingsError('Cannot deploy: KINDLING_GATEWAY_TOKENS has no token for the gateway');
}

function print(flags: Flags, value: object, text: string): void {
  console.log(flags.json ? JSON.stringify(value) : text);
}
