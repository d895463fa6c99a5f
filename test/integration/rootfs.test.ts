import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { chainIds } from '#test/harness/chain-id.ts';
import { LinkProcess } from '#test/harness/link-process.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { CHECKED_NODE, checkRootfs, type RootfsCase } from '#test/harness/rootfs-check.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import type { TreeEntry } from '#test/harness/walk-tree.ts';
import { hasUnstableMtime, writeAwkwardImage } from '#test/images/awkward.ts';
import { COMPRESSIONS } from '#test/images/compression.ts';
import { testImage } from '#test/images/image-cache.ts';
import {
  IMAGE_FORMS,
  isAsPushed,
  isOurs,
  pushForm,
  type FormSource,
  type ImageForm,
} from '#test/images/image-forms.ts';
import type { OciLayout } from '#test/images/oci-layout.ts';
import { recipeOf } from '#test/images/recipe.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

/** Left to `npm run bench -- rootfs`: another level of gzip is decoded by the same code. */
const BENCH_FORMS: readonly ImageForm[] = ['gzip-1', 'gzip-9'];
/** It has a name and an empty xattr that the TOCs of others do not hold. */
const AWKWARD_FORMS = IMAGE_FORMS.filter((form) => (isAsPushed(form) || isOurs(form)) && !BENCH_FORMS.includes(form));
/** The others are in that bench too, with more images. */
const PERL_FORMS: readonly ImageForm[] = ['ctr-remote-zstd-chunked'];

/** One node for all forms of an image: each is removed before the next, which shares no layer with it but all chain IDs. */
class Forms implements AsyncDisposable {
  readonly #parts: AsyncDisposableStack;
  readonly #folder: TempFolder;
  readonly #registry: TestRegistry;
  readonly #link: LinkProcess;
  readonly #node: TestNode;
  readonly #source: FormSource;
  readonly #expected: ReadonlyMap<string, TreeEntry>;

  private constructor(
    parts: AsyncDisposableStack,
    folder: TempFolder,
    registry: TestRegistry,
    link: LinkProcess,
    node: TestNode,
    source: FormSource,
    expected: ReadonlyMap<string, TreeEntry>,
  ) {
    this.#parts = parts;
    this.#folder = folder;
    this.#registry = registry;
    this.#link = link;
    this.#node = node;
    this.#source = source;
    this.#expected = expected;
  }

  static async open(
    name: string,
    layout: (folder: TempFolder, variant: Parameters<FormSource['layout']>[0]) => Promise<OciLayout>,
    signal: AbortSignal,
  ): Promise<Forms> {
    await using parts = new AsyncDisposableStack();
    const folder = parts.use(await TempFolder.create('r'));
    const registry = parts.use(await TestRegistry.start({ folder: folder.path }, signal));
    const link = parts.use(await LinkProcess.start(registry.port, {}, signal));
    const node = parts.use(await TestNode.start(CHECKED_NODE, signal));
    const source: FormSource = { name, layout: async (variant) => await layout(folder, variant) };
    const plain = await source.layout('gzip-6');
    const reference = await registry.push(plain, name, 'plain', signal);
    await node.containerd.pull(reference, 'overlayfs', signal);
    const top = chainIds((await plain.config()).rootfs.diff_ids).at(-1) ?? '';
    const expected = await node.rootfsTree(top, 'overlayfs', signal);
    await node.containerd.removeImage(reference, signal);
    return new Forms(parts.move(), folder, registry, link, node, source, expected);
  }

  /** Bytes that a start has fetched, of all. */
  async check(
    form: ImageForm,
    more: Omit<RootfsCase, 'repository' | 'expected'>,
    signal: AbortSignal,
  ): Promise<number> {
    await pushForm(this.#source, form, this.#registry, this.#folder.path, signal);
    const repository = `${this.#source.name}:${form}`;
    const checked = await checkRootfs(
      this.#node,
      this.#link,
      { repository, expected: this.#expected, ...more },
      signal,
    );
    assert.deepEqual(checked.problems, []);
    await this.#node.containerd.removeImage(checked.reference, signal);
    return checked.startBytes / checked.layers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#parts.disposeAsync();
  }
}

suite('an image has the rootfs that containerd unpacks, and sound layer images, whatever form its layers are in', {
  skip,
}, () => {
  test('the awkward image', async (t) => {
    const { signal } = t;
    const written = new Map<string, Promise<OciLayout>>();
    await using forms = await Forms.open(
      'awkward',
      async (folder, variant) => {
        const known = written.get(variant);
        if (known !== undefined) return await known;
        const compression = COMPRESSIONS.find((each) => each === variant);
        if (compression === undefined) throw new Error(`There is no awkward image of ${variant}`);
        const layout = writeAwkwardImage(folder.join(variant), compression, signal);
        written.set(variant, layout);
        return await layout;
      },
      signal,
    );
    for (const form of AWKWARD_FORMS) {
      await t.test(form, async () => {
        await forms.check(form, { compare: { ignoreMtime: hasUnstableMtime } }, signal);
      });
    }
  });

  test('a real image, and a start fetches a part of it', async (t) => {
    const { signal } = t;
    await using forms = await Forms.open(
      'perl',
      async (_, variant) => await testImage('perl', signal, variant),
      signal,
    );
    for (const form of PERL_FORMS) {
      await t.test(form, async () => {
        const compare = { mtimeRounded: form.startsWith('ctr-remote') };
        const share = await forms.check(form, { compare, start: recipeOf('perl') }, signal);
        assert.ok(share < 0.5, `${share} of it was fetched`);
      });
    }
  });
});
