/** What the command ends with; part of its interface, so a number is never used for something else. */
export const EXIT = {
  ok: 0,
  /** It was tried and failed; the message says why. */
  failed: 1,
  /** The command line is wrong. */
  usage: 2,
  /** The agent, containerd or a registry cannot be reached. */
  unreachable: 3,
  /** The image, layer or container does not exist, or may not be read. */
  notFound: 4,
  /** EX_CONFIG of sysexits.h: a setting is wrong. */
  config: 78,
  /** Ended by Ctrl-C or SIGTERM. */
  interrupted: 130,
} as const;

const UNREACHABLE = new Set(['unreachable', 'unavailable', 'rate-limited', 'ECONNREFUSED', 'ENOENT_SOCKET']);
const NOT_FOUND = new Set(['not-found', 'unauthorized']);

export function exitCodeOf(error: unknown): number {
  if (!(error instanceof Error)) return EXIT.failed;
  if (error.name === 'AbortError' || error.message === 'interrupted') return EXIT.interrupted;
  if (error.name === 'SettingsError') return EXIT.config;
  if (error.name === 'ImageReferenceError') return EXIT.usage;
  const code = 'code' in error ? String(error.code) : '';
  if (UNREACHABLE.has(code)) return EXIT.unreachable;
  if (NOT_FOUND.has(code)) return EXIT.notFound;
  return EXIT.failed;
}
