/** A pod as the kubelet starts one: through containerd's CRI plugin, which knows Kindling only as its snapshotter. */
import assert from 'node:assert/strict';
import { mkdir, readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ContainerdClient } from '#shared/containerd/containerd-client.ts';
import {
  ContainerState,
  CreateContainerRequest,
  ImageServiceService,
  NamespaceMode,
  PodSandboxConfig,
  PullImageRequest,
  RunPodSandboxRequest,
  RuntimeServiceService,
} from '#shared/containerd/gen/cri.ts';
import { TestContainerd } from '#test/harness/containerd.ts';
import { kindlingPaths, TestKindling } from '#test/harness/kindling.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage, tinyProgram } from '#test/harness/tiny-image.ts';
import { testImage } from '#test/images/image-cache.ts';

const skip =
  process.getuid?.() !== 0 ? 'containers need root' : process.arch !== 'x64' ? 'its program is for x86-64' : false;

test('A pod of lazy images runs through the CRI, and its images stay where they are after the agent was killed', {
  skip,
}, async (context) => {
  const { signal } = context;
  await using folder = await TempFolder.create('cri');
  await mkdir(folder.join('r'));
  await using registry = await TestRegistry.start({ folder: folder.join('r') }, signal);
  const pause = await registry.push(
    await tinyImage(folder.join('pause'), [{ pause: tinyProgram('', 'never') }], ['/pause'], signal),
    'pause',
    'v1',
    signal,
  );
  const app = await registry.push(await testImage('perl', signal, 'ctr-remote-optimized'), 'perl', 'v1', signal);
  const address = folder.join('c', 'c.sock');
  await using kindling = await TestKindling.start({ folder: folder.join('k'), containerd: address }, signal);
  await using _containerd = await TestContainerd.start(
    {
      folder: folder.join('c'),
      snapshotterSocket: kindlingPaths(folder.join('k')).socket,
      cri: [
        `sandbox_image = "${pause}"`,
        'stream_server_address = "127.0.0.1"',
        'stream_server_port = "0"',
        'restrict_oom_score_adj = true',
        '[plugins."io.containerd.grpc.v1.cri".containerd]',
        'snapshotter = "kindling"',
        'disable_snapshot_annotations = false',
        'default_runtime_name = "runc"',
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]',
        'runtime_type = "io.containerd.runc.v2"',
        '[plugins."io.containerd.grpc.v1.cri".cni]',
        `conf_dir = "${folder.join('cni')}"`,
      ].join('\n'),
    },
    signal,
  );
  // The namespace is the plugin's own business; no call of ours names it.
  const client = new ContainerdClient({ address, namespace: 'k8s.io' });
  const sandboxes: string[] = [];
  try {
    // CRI registers after the socket is there.
    await untilServed(() => client.unary(RuntimeServiceService.version, { version: 'v1' }, signal), signal);
    await client.unary(ImageServiceService.pullImage, PullImageRequest.fromPartial({ image: { image: app } }), signal);
    const layers = await kindling.client.layers(signal);
    assert.equal(layers.length, 3, `all layers are lazy: ${JSON.stringify(layers)}\n${kindling.log}`);

    const podConfig = (name: string): PodSandboxConfig =>
      PodSandboxConfig.fromPartial({
        metadata: { name, uid: name, namespace: 'default', attempt: 0 },
        logDirectory: folder.join('logs'),
        linux: { securityContext: { namespaceOptions: { network: NamespaceMode.NODE, pid: NamespaceMode.CONTAINER } } },
      });
    await mkdir(folder.join('logs'));
    const start = async (name: string): Promise<void> => {
      const config = podConfig(name);
      const request = RunPodSandboxRequest.fromPartial({ config });
      const { podSandboxId } = await untilServed(
        () => client.unary(RuntimeServiceService.runPodSandbox, request, signal),
        signal,
      );
      sandboxes.push(podSandboxId);
      const { containerId } = await client.unary(
        RuntimeServiceService.createContainer,
        CreateContainerRequest.fromPartial({
          podSandboxId,
          config: {
            metadata: { name: 'app', attempt: 0 },
            image: { image: app },
            command: ['perl', '-MPOSIX', '-e', 'print "served by a pod\\n"; exit 7'],
            logPath: `${name}.log`,
          },
          sandboxConfig: config,
        }),
        signal,
      );
      await client.unary(RuntimeServiceService.startContainer, { containerId }, signal);
      for (;;) {
        const { status } = await client.unary(
          RuntimeServiceService.containerStatus,
          { containerId, verbose: false },
          signal,
        );
        if (status?.state === ContainerState.CONTAINER_EXITED) {
          assert.equal(status.exitCode, 7, status.message);
          break;
        }
        await sleep(20, undefined, { signal });
      }
      assert.match(await readFile(folder.join('logs', `${name}.log`), 'utf8'), /stdout F served by a pod/);
    };
    await start('first');
    await kindling.untilServing(await kindling.killAgent(), signal);
    await start('second');
  } finally {
    const cleanup = AbortSignal.timeout(20_000);
    for (const podSandboxId of sandboxes) {
      await client.unary(RuntimeServiceService.stopPodSandbox, { podSandboxId }, cleanup).catch(() => undefined);
      await client.unary(RuntimeServiceService.removePodSandbox, { podSandboxId }, cleanup).catch(() => undefined);
    }
    client.close();
  }
});

/** As the kubelet does, which tries again: containerd gives a new agent a second before it says "unavailable". */
async function untilServed<T>(ask: () => Promise<T>, signal: AbortSignal): Promise<T> {
  for (;;) {
    signal.throwIfAborted();
    try {
      return await ask();
    } catch (error) {
      if (!/unknown service|unavailable/i.test(String(error))) throw error;
      await sleep(50, undefined, { signal });
    }
  }
}
