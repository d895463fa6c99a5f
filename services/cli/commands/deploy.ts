import { randomUUID } from 'node:crypto';
import { Command } from 'commander';
import { SettingsError } from '#shared/config/settings.ts';
import { subjectOf, toBus, fromBus, type ImageIndexed } from '#shared/events/image-events.ts';
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
    .option('--wait', 'wait until the image is indexed; not with --gateway')
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
  const indexed = Promise.withResolvers<ImageIndexed>();
  // Before the event: its answer must not pass unseen.
  await using _answers = flags.wait
    ? bus.messages.subscribe(subjectOf('image.indexed'), undefined, (payload) => {
        const { data } = fromBus('image.indexed', payload);
        if (data.image === name && data.cause === 'deploy') indexed.resolve(data);
      })
    : undefined;
  await bus.events.publish(toBus(event, new Date()), signal);
  if (!flags.wait) {
    print(flags, { id, ...data }, `${name} is announced (event ${id})`);
    return;
  }
  const ends = AbortSignal.any([signal, AbortSignal.timeout(flags.timeout * 1000)]);
  const done = await Promise.race([
    indexed.promise,
    new Promise<never>((_, reject) => {
      ends.addEventListener(
        'abort',
        () =>
          reject(
            signal.aborted
              ? new Error('interrupted')
              : new Error(
                  `${name} is announced, but not indexed after ${flags.timeout} s; is an indexer running, and can it read the image? See its log, and: kindling events dead`,
                ),
          ),
        { once: true },
      );
    }),
  ]);
  const lazy = done.layers.filter((layer) => layer.state === 'indexed').length;
  print(flags, { id, ...done }, `${name} is indexed: ${lazy} of ${done.layers.length} layers lazy`);
  for (const layer of done.layers) {
    if (layer.state === 'not-lazy' && flags.json !== true) console.log(`  ${layer.layer}: ${layer.reason ?? ''}`);
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
