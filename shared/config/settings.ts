import { z } from 'zod';

/** One setting: everything about it in one place; the README's table is generated from it. */
export interface Setting<S extends z.ZodType = z.ZodType> {
  /** Name of the environment variable: `KINDLING_…`. */
  readonly env: string;
  /** Parses the text of the variable; use `z.coerce` or a preprocess for what is not text. */
  readonly schema: S;
  /** As text, as one would write it in the environment; undefined = off or required, as the help says. */
  readonly default?: string;
  readonly unit?: string;
  readonly help: string;
  /** Never printed. */
  readonly secret?: boolean;
}

export type Settings = Readonly<Record<string, Setting>>;
export type Values<T extends Settings> = { readonly [K in keyof T]: z.infer<T[K]['schema']> };

export class SettingsError extends Error {
  override readonly name = 'SettingsError';
  readonly code = 'invalid';
}

const PREFIX = 'KINDLING_';
/** Variables with our prefix that are not settings: set by a parent process of ours or by the service manager. */
const NOT_OURS = new Set(['KINDLING_FUSE_FD', 'KINDLING_KEEPER', 'KINDLING_HELD_SOCKET', 'KINDLING_TURN']);

/**
 * Reads the settings of one or more services from the environment.
 *
 * @throws SettingsError naming every variable that is wrong, and unknown `KINDLING_…` names, with the nearest known one.
 */
export function loadSettings<T extends Settings>(
  settings: T,
  env: Readonly<Record<string, string | undefined>>,
  alsoKnown: Settings = {},
): Values<T> {
  const problems: string[] = [];
  const values: Record<string, unknown> = {};
  for (const [key, setting] of Object.entries(settings)) {
    const raw = env[setting.env];
    const text = raw === undefined || raw === '' ? setting.default : raw;
    const parsed = setting.schema.safeParse(text);
    if (parsed.success) values[key] = parsed.data;
    else {
      const shown = setting.secret ? '(secret)' : JSON.stringify(text ?? null);
      problems.push(
        `${setting.env}=${shown}: ${parsed.error.issues.map((i) => i.message).join('; ')} (${setting.help})`,
      );
    }
  }
  const known = [...Object.values(settings), ...Object.values(alsoKnown)].map((setting) => setting.env);
  for (const name of Object.keys(env)) {
    if (!name.startsWith(PREFIX) || NOT_OURS.has(name) || known.includes(name)) continue;
    const near = known.toSorted((a, b) => distance(a, name) - distance(b, name))[0];
    const isNear = near !== undefined && distance(near, name) <= Math.max(2, (name.length - PREFIX.length) / 3);
    problems.push(`${name} is not a setting of this service${isNear ? `; did you mean ${near}?` : ''}`);
  }
  if (problems.length > 0) throw new SettingsError(`Cannot start: ${problems.join('\n  ')}`);
  return values as Values<T>;
}

/** The values as printed at start: secrets replaced. */
export function redacted<T extends Settings>(settings: T, values: Values<T>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(settings).map(([key, setting]) => [
      setting.env,
      setting.secret && values[key] !== undefined ? '(set)' : (values[key] ?? null),
    ]),
  );
}

/** Text settings that name nothing when empty. */
export const optionalText = z.string().optional();
export const bytes = z
  .string()
  .regex(/^\d+(\.\d+)?\s*([kmgt]i?b?)?$/i, 'a number of bytes, such as 20G or 512MiB')
  .transform((text) => {
    const [, number, unit] = /^([\d.]+)\s*([kmgt]?)/i.exec(text) ?? [];
    return Math.round(Number(number) * 1024 ** ' kmgt'.indexOf((unit || ' ').toLowerCase()));
  });
export const integer = z
  .string()
  .regex(/^-?\d+$/, 'a whole number')
  .transform(Number);
export const flag = z.enum(['true', 'false', '1', '0', 'yes', 'no']).transform((text) => /^(true|1|yes)$/.test(text));
export const list = z
  .string()
  .optional()
  .transform((text) =>
    (text ?? '')
      .split(',')
      .map((part) => part.trim())
      .filter((part) => part !== ''),
  );

/** Where a service listens; the port is not checked to be free. */
export interface Address {
  readonly host: string;
  readonly port: number;
}

const addressText = z
  .string()
  .regex(/^([^\s:]*|\[[0-9a-f:]+\]):\d{1,5}$/i, 'host:port')
  .refine((text) => Number(text.slice(text.lastIndexOf(':') + 1)) <= 65_535, 'host:port, with a port up to 65535');
/** `host:port` or `[IPv6]:port`; `:port` means `defaultHost`. */
export const address = (defaultHost: string) => addressText.transform((text) => toAddress(text, defaultHost));
/** The same, or nothing for none. */
export const optionalAddress = (defaultHost: string) =>
  addressText.optional().transform((text) => (text === undefined ? undefined : toAddress(text, defaultHost)));

function toAddress(text: string, defaultHost: string): Address {
  const colon = text.lastIndexOf(':');
  return { host: text.slice(0, colon).replaceAll(/[[\]]/g, '') || defaultHost, port: Number(text.slice(colon + 1)) };
}

function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(
        (row[j] ?? 0) + 1,
        (next[j - 1] ?? 0) + 1,
        (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1),
      );
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
