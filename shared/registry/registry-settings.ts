import { list, optionalText, type Settings } from '#shared/config/settings.ts';

/** How a service asks registries; the same for all of them. */
export const registrySettings = {
  dockerConfig: {
    env: 'KINDLING_DOCKER_CONFIG',
    schema: optionalText,
    help: 'Docker config.json with credentials and credential helpers; default: $DOCKER_CONFIG/config.json or ~/.docker/config.json',
  },
  registryMirrors: {
    env: 'KINDLING_REGISTRY_MIRRORS',
    schema: optionalText,
    default: '/etc/containerd/certs.d',
    help: "folder with HOST/hosts.toml, as containerd's config_path: mirrors, CA certificates, headers",
  },
  plainHttpRegistries: {
    env: 'KINDLING_PLAIN_HTTP_REGISTRIES',
    schema: list,
    help: 'host[:port] names that are spoken to in plain HTTP, separated by commas; loopback always is',
  },
} as const satisfies Settings;
