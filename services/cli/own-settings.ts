import { loadSettings, type Settings, type Values } from '#shared/config/settings.ts';

/**
 * What a command takes from the environment. It may be that of a service, whose other settings are the service's to check.
 *
 * @param given What the command line says instead.
 * @throws SettingsError
 */
export function ownSettings<T extends Settings>(
  settings: T,
  given: Readonly<Record<string, string | undefined>> = {},
): Values<T> {
  const own = new Set(Object.values(settings).map((setting) => setting.env));
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => own.has(name)));
  const said = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  return loadSettings(settings, { ...env, ...said });
}
