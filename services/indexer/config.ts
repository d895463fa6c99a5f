import { availableParallelism } from 'node:os';
import { z } from 'zod';
import { busSettings } from '#shared/bus/open-bus.ts';
import { flag, integer, list, type Settings, type Values } from '#shared/config/settings.ts';
import { registrySettings } from '#shared/registry/registry-settings.ts';
import { telemetrySettings } from '#shared/telemetry/telemetry-settings.ts';

export const SETTINGS = {
  ...busSettings,
  ...registrySettings,
  registries: {
    env: 'KINDLING_INDEXER_REGISTRIES',
    schema: list,
    default: '*',
    help: 'Whose images are indexed: host[:port], host/path, host/path/* or *, separated by commas',
  },
  platforms: {
    env: 'KINDLING_INDEXER_PLATFORMS',
    schema: list,
    help: 'Platforms (os/arch[/variant]) of an image that are indexed, or "all"; default: that of this machine',
  },
  events: {
    env: 'KINDLING_INDEXER_EVENTS',
    schema: integer.pipe(z.int().min(1).max(64)),
    default: '4',
    help: 'Images that are worked on at a time',
  },
  builds: {
    env: 'KINDLING_INDEXER_BUILDS',
    schema: integer.pipe(z.int().min(1).max(64)),
    default: String(Math.max(1, Math.floor(availableParallelism() / 2))),
    help: 'Layers whose index is built at a time; each keeps about two cores busy',
  },
  attempts: {
    env: 'KINDLING_INDEXER_ATTEMPTS',
    schema: integer.pipe(z.int().min(1).max(100)),
    default: '10',
    help: 'Attempts at an event before it is put among the dead letters',
  },
  pushIndexes: {
    env: 'KINDLING_INDEXER_PUSH',
    schema: flag,
    default: 'false',
    help: 'Also push the indexes beside the image into its registry, as an artifact that refers to it',
  },
  ...telemetrySettings,
} as const satisfies Settings;

export type IndexerValues = Values<typeof SETTINGS>;
