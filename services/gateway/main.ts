import { serviceMain } from '#shared/service/service-main.ts';
import { SETTINGS } from './config.ts';
import { runGateway } from './service.ts';

await serviceMain('gateway', SETTINGS, runGateway);
