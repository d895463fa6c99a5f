import { buildFromRegistry } from '#shared/indexes/build-from-registry.ts';
import { openRegistryClient } from '#shared/registry/open-registry.ts';
import { serviceMain } from '#shared/service/service-main.ts';
import { SETTINGS } from './config.ts';
import { runIndexer } from './service.ts';

await serviceMain('indexer', SETTINGS, async (values, parts, signal) => {
  const registry = openRegistryClient(values, parts.logger);
  try {
    await runIndexer(values, { ...parts, registry, build: buildFromRegistry.bind(undefined, registry) }, signal);
  } finally {
    await registry.close();
  }
});
