/**
 * Writes the configuration tables of README.md anew, between their markers, from the settings in `services/*\/config.ts`:
 *
 *   node infra/readme-settings.ts
 */
import { glob, readFile, writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Setting, Settings } from '#shared/config/settings.ts';

const ROOT = resolve(import.meta.dirname, '..');
export const README = resolve(ROOT, 'README.md');
const BEGIN = '<!-- settings: begin (written by: node infra/readme-settings.ts) -->';
const END = '<!-- settings: end -->';

/** As an operator knows them; others go by the name of their folder. */
const TITLES: Readonly<Record<string, string>> = { snapshotter: 'agent' };
/** Defaults that are another on each machine. */
const MACHINE_DEFAULTS: Readonly<Record<string, string>> = {
  KINDLING_WORKERS: 'cores + 1, from 3 to 9',
  KINDLING_NODE_NAME: 'the host name',
  KINDLING_INDEXER_BUILDS: 'half the cores',
};

interface Row {
  readonly setting: Setting;
  readonly services: readonly string[];
}

/** The text of README.md with tables that are up to date. @throws Error when the markers are missing */
export async function withSettings(readme: string): Promise<string> {
  const begin = readme.indexOf(BEGIN);
  const end = readme.indexOf(END);
  if (begin < 0 || end < begin) throw new Error(`README.md has no lines "${BEGIN}" and "${END}", in this order`);
  return `${readme.slice(0, begin)}${BEGIN}\n\n${await tables()}\n\n${readme.slice(end)}`;
}

async function tables(): Promise<string> {
  const rows = new Map<string, { setting: Setting; services: string[] }>();
  const titles: string[] = [];
  const files: string[] = [];
  for await (const file of glob('services/*/config.ts', { cwd: ROOT })) files.push(file);
  for (const file of files.toSorted()) {
    const name = file.split('/')[1] ?? '';
    const title = TITLES[name] ?? name;
    titles.push(title);
    const module = (await import(pathToFileURL(resolve(ROOT, file)).href)) as { readonly SETTINGS: Settings };
    for (const setting of Object.values(module.SETTINGS)) {
      const row = rows.get(setting.env);
      if (row) row.services.push(title);
      else rows.set(setting.env, { setting, services: [title] });
    }
  }
  const all = [...rows.values()];
  const shared = all.filter((row) => row.services.length > 1);
  const parts = [`**Several services**\n\n${table(shared, true, titles.length)}`];
  for (const title of titles.toSorted()) {
    const own = all.filter((row) => row.services.length === 1 && row.services[0] === title);
    if (own.length > 0) parts.push(`**${title.charAt(0).toUpperCase()}${title.slice(1)}**\n\n${table(own, false, 0)}`);
  }
  return parts.join('\n\n');
}

function table(rows: readonly Row[], hasServices: boolean, serviceCount: number): string {
  const head = ['Variable', 'Default', 'What it does', ...(hasServices ? ['Used by'] : [])];
  const lines = rows
    .toSorted((a, b) => (a.setting.env < b.setting.env ? -1 : 1))
    .map(({ setting, services }) => {
      const used = services.length === serviceCount ? 'all' : services.toSorted().join(', ');
      return [`\`${setting.env}\``, defaultOf(setting), helpOf(setting), ...(hasServices ? [used] : [])];
    });
  return [head, head.map(() => '---'), ...lines].map((cells) => `| ${cells.map(escaped).join(' | ')} |`).join('\n');
}

function defaultOf(setting: Setting): string {
  const machine = MACHINE_DEFAULTS[setting.env];
  if (machine !== undefined) return machine;
  return setting.default === undefined ? '' : `\`${setting.default}\``;
}

function helpOf({ help, unit, secret }: Setting): string {
  // Names of things stay as they are written.
  const [first = ''] = help.split(' ');
  const text = /^[a-z]+$/.test(first) && first !== 'containerd' ? first.charAt(0).toUpperCase() + help.slice(1) : help;
  return `${text}${unit === undefined ? '' : ` (${unit})`}${secret === true ? ' (secret: never printed)' : ''}`;
}

function escaped(cell: string): string {
  // Within backquotes all but "|" is as it is.
  if (cell.startsWith('`')) return cell.replaceAll('|', '\\|');
  return cell.replaceAll('|', '\\|').replaceAll('*', '\\*').replaceAll('<', '&lt;');
}

if (import.meta.main) await writeFile(README, await withSettings(await readFile(README, 'utf8')));
