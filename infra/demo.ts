/**
 * `npm run demo`: a registry, containerd and Kindling on this machine; starts the python image once as containerd does by itself
 * (pull, unpack, start) and once with Kindling (start, fetch what is read), and prints both. Everything lives in a temp folder and
 * is gone when the demo ends: at once, or with Ctrl-C where it runs on a terminal.
 */
import { parseArgs } from 'node:util';
import { LinkProcess } from '#test/harness/link-process.ts';
import { TestNode } from '#test/harness/node.ts';
import { dropCaches } from '#test/harness/page-cache.ts';
import { startUntilReady } from '#test/harness/readiness.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import type { Shape } from '#test/harness/shaped-proxy.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { testImage } from '#test/images/image-cache.ts';
import { RECIPES, recipeOf } from '#test/images/recipe.ts';
import { runTool } from '#test/images/tool.ts';
import { printWaterfalls, type Waterfall } from './waterfall.ts';

const LINKS: Readonly<Record<string, Shape>> = {
  none: {},
  '1gbit': { bytesPerSecond: 125_000_000, delayMs: 1 },
  '100mbit': { bytesPerSecond: 12_500_000, delayMs: 10 },
};

/** How long a start is watched that does not end by itself. */
const WATCH_SECONDS = 5;

const { values } = parseArgs({
  options: {
    image: { type: 'string', default: 'python' },
    link: { type: 'string', default: '1gbit' },
    once: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
const link = LINKS[values.link];
if (values.help || link === undefined) {
  console.log(
    `usage: npm run demo -- [--image ${RECIPES.map(({ name }) => name).join('|')}]\n  [--link ${Object.keys(LINKS).join('|')}] [--once]\n  --once: do not wait for Ctrl-C at the end`,
  );
  process.exit(values.help ? 0 : 2);
}
if (process.getuid?.() !== 0) {
  console.error('The demo mounts file systems and starts containers: run it as root (sudo npm run demo)');
  process.exit(1);
}
// The harness takes everything away on SIGINT and SIGTERM by itself; the signal here is for what is under way.
const signal = AbortSignal.timeout(1_800_000);
await demo(signal);

async function demo(signal: AbortSignal): Promise<void> {
  const recipe = recipeOf(values.image);
  say(`building the ${recipe.name} image from Debian packages (once; kept in the cache)`);
  const image = await testImage(recipe.name, signal);
  await using folder = await TempFolder.create('demo');
  say('starting a registry, containerd and Kindling');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await using network = await LinkProcess.start(registry.port, link ?? {}, signal);
  await registry.push(image, recipe.name, 'plain', signal);
  await using node = await TestNode.start({}, signal);
  const plain = `${network.host}/${recipe.name}:plain`;
  const lazy = `${network.host}/${recipe.name}:lazy`;
  const totalBytes = await image.layerBytes();

  say(`starting ${plain} with overlayfs: pull, unpack, start`);
  await dropCaches(signal);
  const whole = await waterfall('overlayfs', network, async (mark) => {
    await node.containerd.pull(plain, 'overlayfs', signal);
    mark('pull and unpack');
    const start = await startUntilReady(node.containerd, plain, recipe, 'overlayfs', signal);
    mark('start to ready');
    return start.output;
  });

  say('learning what the start reads, and writing the image anew with that first (kindling optimize)');
  await optimize(plain, lazy, node, recipe.ready.kind === 'http', signal);

  say(`starting ${lazy} with Kindling: mount, start`);
  await dropCaches(signal);
  const part = await waterfall('kindling', network, async (mark) => {
    await node.kindling.pull(lazy, signal);
    mark('resolve and mount');
    const start = await startUntilReady(node.containerd, lazy, recipe, 'kindling', signal);
    mark('start to ready');
    return start.output;
  });
  const again = await startUntilReady(node.containerd, lazy, recipe, 'kindling', signal);

  console.log('');
  printWaterfalls([whole, part], totalBytes);
  console.log(`\n  second start with Kindling: ${(again.readyMs / 1000).toFixed(2)} s`);
  console.log(`  link to the registry: ${values.link}${values.link === 'none' ? ' (this machine)' : ''}`);
  if (whole.output !== part.output) throw new Error('The two containers did not write the same');

  const settings = [
    `KINDLING_CONTROL_SOCKET=${node.kindling.controlSocket}`,
    `KINDLING_CONTAINERD=${node.containerd.address}`,
    'KINDLING_NAMESPACE=test',
  ].join(' ');
  console.log(`
What to try next, in another terminal, while the demo runs:
  export ${settings}
  services/cli/kindling.sh status
  services/cli/kindling.sh run ${lazy}
  ctr --address ${node.containerd.address} --namespace test run --rm --snapshotter kindling ${lazy} again
  kill -9 ${(await node.kindling.agentPid()) ?? '<agent>'}    # the agent; containers go on, the next one serves at once
On a node of your own: README.md, "Point an existing containerd at it".`);
  if (process.stdin.isTTY && process.stdout.isTTY && !values.once) {
    console.log('\nThe demo keeps running. Press Ctrl-C to end it and remove everything it has made.');
    await new Promise<never>(() => setInterval(() => {}, 60_000));
  }
  say('removing everything');
}

/** By the command itself; the image is started with the snapshotter that has it already. */
async function optimize(
  source: string,
  target: string,
  node: TestNode,
  hostNetwork: boolean,
  signal: AbortSignal,
): Promise<void> {
  const places = ['--containerd', node.containerd.address, '--namespace', 'test', '--snapshotter', 'overlayfs'];
  const flags = ['--period', String(WATCH_SECONDS), '--spool', node.folder.path, '--json'];
  const program = new URL('../services/cli/kindling.sh', import.meta.url).pathname;
  if (hostNetwork) flags.push('--host-network');
  await runTool(program, ['optimize', ...places, ...flags, source, target], signal);
}

/** Times the steps that `work` marks, and the bytes that came from the registry meanwhile. */
async function waterfall(
  name: string,
  network: LinkProcess,
  work: (mark: (step: string) => void) => Promise<string>,
): Promise<Waterfall & { readonly output: string }> {
  const steps: { name: string; fromMs: number; toMs: number }[] = [];
  const before = await network.bytesDown();
  const started = performance.now();
  const output = await work((step) =>
    steps.push({ name: step, fromMs: steps.at(-1)?.toMs ?? 0, toMs: performance.now() - started }),
  );
  return { name, steps, bytes: (await network.bytesDown()) - before, output };
}

function say(text: string): void {
  console.log(`demo: ${text}`);
}
