/**
 * The one setting that an agent needs before it has read the others: where its data is. Apart from those, since what parses them
 * takes longer to load than readers should wait for the agent that follows another.
 */
export const DATA_FOLDER = { env: 'KINDLING_DATA_DIR', default: '/var/lib/kindling' } as const;

/** Not checked here: the settings say what is wrong with it. */
export function dataFolderOf(env: Readonly<Record<string, string | undefined>>): string {
  return env[DATA_FOLDER.env] || DATA_FOLDER.default;
}

/** Where the folder of layer images is mounted; the keeper is told it on its command line. */
export function fuseDirOf(dataDir: string): string {
  return `${dataDir}/fuse`;
}
