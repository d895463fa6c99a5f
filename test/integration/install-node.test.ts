import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { access, mkdir, mkdtemp, readFile, readlink, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { describe, it } from 'node:test';
import { promisify } from 'node:util';

const execute = promisify(execFile);
const root = resolve(import.meta.dirname, '../..');
const version = await execute('containerd', ['--version']).then(
  ({ stdout }) => / v?(\d+)\./.exec(stdout)?.[1],
  () => undefined,
);
const skip = version === undefined ? 'needs containerd' : false;

async function install(folder: string): Promise<string> {
  const { stdout } = await execute('sh', [join(root, 'infra/install-node.sh'), '--root', folder]);
  return stdout;
}

describe('installing on a node', { skip }, () => {
  it('puts a version beside the others, points to it, extends containerd, and changes nothing the second time', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'kindling-install-'));
    t.after(async () => await rm(folder, { recursive: true }));
    const config = join(folder, 'etc/containerd/config.toml');
    await mkdir(join(folder, 'etc/containerd'), { recursive: true });
    await writeFile(config, `version = 2\nimports = []\n\n[grpc]\n  gid = 7\n`);
    await install(folder);
    const first = await readlink(join(folder, 'opt/kindling/current'));
    for (const path of [
      'etc/systemd/system/kindling.service',
      'etc/kindling/node.env',
      'etc/containerd/conf.d/kindling.toml',
    ]) {
      await access(join(folder, path));
    }
    const { stdout: help } = await execute(
      join(folder, 'opt/kindling/current/services/cli/kindling.sh'),
      ['up', '--help'],
      {
        env: { ...process.env, NODE_COMPILE_CACHE: join(folder, 'cache') },
      },
    );
    assert.match(help, /--data-dir/);

    // containerd itself reads it; below another root the path of the import has to be that root's.
    const text = await readFile(config, 'utf8');
    assert.match(text, /^imports = \["\/etc\/containerd\/conf\.d\/\*\.toml"\]$/m);
    const moved = join(folder, 'moved.toml');
    await writeFile(moved, text.replace('"/etc', `"${folder}/etc`));
    const { stdout: dump } = await execute('containerd', ['--config', moved, 'config', 'dump']);
    assert.match(dump, /proxy_plugins\.["']?kindling/);
    assert.match(dump, /gid = 7/);

    const again = await install(folder);
    if ((await readlink(join(folder, 'opt/kindling/current'))) !== first) {
      return t.skip('the checkout was edited meanwhile: the second installation was of another version');
    }
    assert.doesNotMatch(again, /copying|wrote|now imports/);
    assert.equal(await readFile(config, 'utf8'), text);
    assert.equal(await readlink(join(folder, 'opt/kindling/current')), first);
    assert.deepEqual((await readdir(join(folder, 'opt/kindling'))).toSorted(), [first, 'current'].toSorted());
  });

  it('installs from a copy that has only the packages that run, as a container image has them', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'kindling-install-'));
    t.after(async () => await rm(folder, { recursive: true }));
    const image = join(folder, 'image');
    await mkdir(join(image, 'etc/containerd'), { recursive: true });
    await install(image);
    const node = join(folder, 'node');
    await mkdir(join(node, 'etc/containerd'), { recursive: true });
    const copy = join(image, 'opt/kindling/current');
    // Where the image is installed from there is no npm.
    const npm = join(folder, 'bin/npm');
    await mkdir(join(folder, 'bin'));
    await writeFile(npm, '#!/bin/sh\nexit 1\n', { mode: 0o755 });
    const env = { ...process.env, PATH: `${join(folder, 'bin')}:${process.env['PATH']}` };
    await execute('sh', [join(copy, 'infra/install-node.sh'), '--root', node], { env });
    const packages = async (root: string) => (await readdir(join(root, 'node_modules'))).toSorted();
    assert.deepEqual(await packages(join(node, 'opt/kindling/current')), await packages(copy));
  });

  it('refuses a configuration of containerd that it cannot extend, and changes nothing', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'kindling-install-'));
    t.after(async () => await rm(folder, { recursive: true }));
    const config = join(folder, 'etc/containerd/config.toml');
    await mkdir(join(folder, 'etc/containerd'), { recursive: true });
    for (const [text, reason] of [
      ['version = 2\nimports = ["/etc/other/*.toml"]\n', /imports other files/],
      ['[grpc]\n', /version = 2/],
      ['version = 2\n[proxy_plugins.kindling]\n', /section/],
    ] as const) {
      await writeFile(config, text);
      await assert.rejects(install(folder), reason);
      assert.equal(await readFile(config, 'utf8'), text);
      assert.deepEqual(await readdir(folder), ['etc']);
    }
    await assert.rejects(execute('sh', [join(root, 'infra/install-node.sh'), '--what']), /unknown option/);
  });
});
