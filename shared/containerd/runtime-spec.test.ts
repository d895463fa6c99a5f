import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import { chainIds, parseImageConfig, type ImageConfig } from './image-records.ts';
import { mergeEnv, processArgs, runtimeSpec } from './runtime-spec.ts';

const config: ImageConfig = {
  user: '',
  env: ['A=1', 'PATH=/opt/bin'],
  entrypoint: ['/entry'],
  cmd: ['x'],
  workingDir: '/srv',
  stopSignal: '',
  diffIds: [],
  platform: undefined,
};

test('The image says what runs, the caller may say otherwise', () => {
  assert.deepEqual(processArgs(config, []), ['/entry', 'x']);
  assert.deepEqual(processArgs(config, ['sh']), ['sh']);
  assert.throws(() => processArgs({ ...config, entrypoint: [], cmd: [] }, []), /names no command/);
});

test('The last setting of a variable wins', () => {
  assert.deepEqual(mergeEnv(['A=1', 'B=2'], ['A=3'], ['C']), ['A=3', 'B=2', 'C']);
});

test('A specification has the process, its user and the mounts that were asked for', () => {
  const spec = runtimeSpec({
    id: 'c1',
    namespace: 'default',
    config,
    user: { uid: 1, gid: 2, additionalGids: [2] },
    args: [],
    env: ['A=2'],
    mounts: [{ source: '/host', destination: '/in', readOnly: true }],
    hostNetwork: true,
  });
  const { process, mounts, linux } = spec as {
    process: { args: string[]; env: string[]; cwd: string; user: unknown; noNewPrivileges: boolean };
    mounts: { destination: string; options: string[] }[];
    linux: { namespaces: { type: string }[]; cgroupsPath: string };
  };
  assert.deepEqual([process.args, process.env, process.cwd], [['/entry', 'x'], ['PATH=/opt/bin', 'A=2'], '/srv']);
  assert.deepEqual(process.user, { uid: 1, gid: 2, additionalGids: [2] });
  assert.deepEqual(mounts.at(-1), { destination: '/in', type: 'bind', source: '/host', options: ['rbind', 'ro'] });
  assert.ok(!linux.namespaces.some(({ type }) => type === 'network'));
  assert.equal(linux.cgroupsPath, '/default/c1');
});

test("A chain ID is the digest of its parent's and its own", () => {
  const [a, b] = [sha256(Buffer.from('a')), sha256(Buffer.from('b'))];
  assert.deepEqual(chainIds([]), []);
  assert.deepEqual(chainIds([a, b]), [a, sha256(Buffer.from(`${a} ${b}`))]);
});

test('A configuration may leave out nearly everything; what is none is refused by name', () => {
  const read = (value: unknown): ImageConfig => parseImageConfig(Buffer.from(JSON.stringify(value)), 'img');
  assert.deepEqual(read({}), { ...config, env: [], entrypoint: [], cmd: [], workingDir: '/' });
  assert.deepEqual(read({ os: 'linux', architecture: 'arm64' }).platform, {
    os: 'linux',
    architecture: 'arm64',
    variant: undefined,
  });
  assert.deepEqual(read({ config: { Cmd: null, User: 'www', WorkingDir: '' } }).user, 'www');
  for (const wrong of [[], 'x', { config: { Env: 'A' } }, { rootfs: { diff_ids: ['sha256:short'] } }]) {
    assert.throws(() => read(wrong), /img/);
  }
});
