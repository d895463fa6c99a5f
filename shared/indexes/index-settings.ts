import { list, type Settings } from '#shared/config/settings.ts';

export const indexSettings = {
  trustedIndexes: {
    env: 'KINDLING_TRUSTED_INDEXES',
    schema: list,
    help: 'Repositories (host[:port], host/path, host/path/*, *) whose layer indexes and SOCI indexes, found beside the image, are believed; whoever may push there may redefine a layer of other images',
  },
} as const satisfies Settings;
