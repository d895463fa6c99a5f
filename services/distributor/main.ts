import { openRegistryClient } from '#shared/registry/open-registry.ts';
import { serviceMain } from '#shared/service/service-main.ts';
import { SETTINGS } from './config.ts';
import { runDistributor } from './service.ts';

await serviceMain('distributor', SETTINGS, async (values, parts, signal) => {
  const registry = openRegistryClient(values, parts.logger);
  try {
    await runDistributor(values, { ...parts, registry }, signal);
  } finally {
    await registry.close();
  }
});
