import { InvalidArgumentError } from 'commander';
import { parsePlatform } from '#shared/registry/platform.ts';

/** Gathers an option that may be repeated. */
export function collect(value: string, before: readonly string[]): string[] {
  return [...before, value];
}

/** A platform as it is written. @throws InvalidArgumentError for what is none */
export function platformText(value: string): string {
  try {
    parsePlatform(value);
    return value;
  } catch {
    throw new InvalidArgumentError('write os/architecture[/variant], such as linux/amd64');
  }
}

/** @throws InvalidArgumentError for anything but up to six digits */
export function wholeNumber(value: string): number {
  if (/^\d{1,6}$/.test(value)) return Number(value);
  throw new InvalidArgumentError('write a whole number');
}
