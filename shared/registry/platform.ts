import type { Descriptor, Platform } from './manifest.ts';

/** The platform of this machine, in OCI's terms. */
export function hostPlatform(): Platform {
  const architecture =
    { x64: 'amd64', ia32: '386', arm64: 'arm64', arm: 'arm' }[process.arch as string] ?? process.arch;
  return { os: 'linux', architecture, ...(architecture === 'arm' ? { variant: 'v7' } : {}) };
}

/** `os/architecture[/variant]`, as on every command line. @throws RangeError */
export function parsePlatform(text: string): Platform {
  const [os, architecture, variant, ...more] = text.split('/');
  if (!os || !architecture || more.length > 0 || variant === '') {
    throw new RangeError(
      `Cannot parse platform ${JSON.stringify(text)}: write os/architecture[/variant], such as linux/amd64`,
    );
  }
  return normalise({ os, architecture, ...(variant === undefined ? {} : { variant }) });
}

export function formatPlatform(platform: Platform): string {
  return [platform.os, platform.architecture, ...(platform.variant ? [platform.variant] : [])].join('/');
}

/** The best entry of an index for `wanted`: exact variant first, then a lower one of arm; undefined = none runs there. */
export function choosePlatform(manifests: readonly Descriptor[], wanted: Platform): Descriptor | undefined {
  const target = normalise(wanted);
  let best: Descriptor | undefined;
  let bestRank = 0;
  for (const entry of manifests) {
    // What is stored beside an image for its platform (a SOCI index) is none.
    if (entry.platform === undefined || entry.artifactType !== undefined) continue;
    const rank = rankOf(normalise(entry.platform), target);
    if (rank > bestRank) {
      best = entry;
      bestRank = rank;
    }
  }
  return best;
}

/** Whether what is for `have` runs on `wanted`. */
export function runsOn(have: Platform, wanted: Platform): boolean {
  return rankOf(normalise(have), normalise(wanted)) > 0;
}

/** 0 = does not run there; the higher the better. */
function rankOf(have: Platform, want: Platform): number {
  if (have.os !== want.os || have.architecture !== want.architecture) return 0;
  if ((have.variant ?? '') === (want.variant ?? '')) return 100;
  if (want.architecture === 'arm') {
    const lower = Number(have.variant?.slice(1) ?? 7);
    return lower <= Number(want.variant?.slice(1) ?? 7) ? lower : 0;
  }
  // amd64/v2 and the like need a newer processor than a plain amd64 request promises.
  return have.variant === undefined ? 50 : 0;
}

function normalise(platform: Platform): Platform {
  const architecture =
    { x86_64: 'amd64', 'x86-64': 'amd64', aarch64: 'arm64', i386: '386', armhf: 'arm' }[platform.architecture] ??
    platform.architecture;
  let variant = platform.variant || undefined;
  if (architecture === 'arm64' && variant === 'v8') variant = undefined;
  if (architecture === 'amd64' && variant === 'v1') variant = undefined;
  if (architecture === 'arm' && variant === undefined) variant = 'v7';
  return { os: platform.os, architecture, ...(variant === undefined ? {} : { variant }) };
}
