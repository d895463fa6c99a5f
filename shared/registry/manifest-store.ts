import { isDigest, sha256, type Digest } from '#shared/digest/digest.ts';
import { mismatch } from './blob-reader.ts';
import {
  type Descriptor,
  type ImageManifest,
  isManifestType,
  type Manifest,
  MANIFEST_LIMITS,
  ManifestError,
  MEDIA_TYPES,
  parseManifest,
  type Platform,
} from './manifest.ts';
import { choosePlatform, formatPlatform } from './platform.ts';
import { formatReference, type Reference } from './reference.ts';
import { RegistryError } from './registry-error.ts';
import type { RegistrySession, Repository } from './registry-session.ts';
import { dropBody, headerOf, readBody } from './transport.ts';

/** A manifest as it is on the registry: `bytes` match `descriptor.digest`. */
export interface FetchedManifest {
  readonly descriptor: Descriptor;
  readonly bytes: Buffer;
  readonly parsed: Manifest;
}

export interface FetchedImage extends FetchedManifest {
  readonly parsed: ImageManifest;
  /** The index it was chosen from, where the reference names one. */
  readonly index: FetchedManifest | undefined;
}

const ACCEPT = [MEDIA_TYPES.ociIndex, MEDIA_TYPES.ociManifest, MEDIA_TYPES.dockerList, MEDIA_TYPES.dockerManifest].join(
  ', ',
);
/** An index that names indexes that name indexes is nobody's image. */
const INDEX_DEPTH = 3;

/** Manifests and indexes of repositories. */
export class ManifestStore {
  readonly #session: RegistrySession;

  constructor(session: RegistrySession) {
    this.#session = session;
  }

  async resolve(reference: Reference, signal: AbortSignal): Promise<Descriptor> {
    const repository = this.#session.repository(reference.repository);
    const ask = { ...askFor(reference), method: 'HEAD', capability: 'resolve' } as const;
    const found = await this.#session.send(
      repository,
      ask,
      async (answer) => {
        const digest = headerOf(answer, 'docker-content-digest') ?? reference.digest;
        const size = Number(headerOf(answer, 'content-length') ?? Number.NaN);
        const mediaType = typeOf(headerOf(answer, 'content-type'));
        await dropBody(answer);
        // Some registries leave the digest out, and a digest that was asked for is not theirs to change.
        if (!isDigest(digest) || !(size > 0) || !isManifestType(mediaType)) return undefined;
        if (reference.digest !== undefined && digest !== reference.digest) throw mismatch(repository, reference.digest);
        return { digest, size, mediaType };
      },
      signal,
    );
    return found ?? (await this.get(reference, signal)).descriptor;
  }

  async get(reference: Reference, signal: AbortSignal): Promise<FetchedManifest> {
    const repository = this.#session.repository(reference.repository);
    const ask = askFor(reference);
    return await this.#session.send(
      repository,
      ask,
      async (answer) => {
        const bytes = await readBody(answer, MANIFEST_LIMITS.bytes, `${ask.what} of ${repository.path}`, signal);
        const digest = sha256(bytes);
        const told = reference.digest ?? headerOf(answer, 'docker-content-digest');
        if (isDigest(told) && told !== digest) throw mismatch(repository, told);
        const parsed = parse(bytes, typeOf(headerOf(answer, 'content-type')), repository, ask.what);
        return { descriptor: { mediaType: parsed.mediaType, digest, size: bytes.length }, bytes, parsed };
      },
      signal,
    );
  }

  async forPlatform(reference: Reference, platform: Platform, signal: AbortSignal): Promise<FetchedImage> {
    let fetched = await this.get(reference, signal);
    let index: FetchedManifest | undefined;
    for (let depth = 0; fetched.parsed.kind === 'index'; depth++) {
      index ??= fetched;
      const chosen = choosePlatform(fetched.parsed.manifests, platform) ?? onlyOne(fetched.parsed.manifests);
      if (chosen === undefined || depth >= INDEX_DEPTH) {
        const offered = fetched.parsed.manifests.flatMap((entry) =>
          entry.platform ? [formatPlatform(entry.platform)] : [],
        );
        throw new RegistryError(
          'not-found',
          `${formatReference(reference)} has no image for ${formatPlatform(platform)}; it has ${[...new Set(offered)].slice(0, 20).join(', ') || 'none that names a platform'}`,
          { host: reference.host, repository: reference.path },
        );
      }
      const next = await this.get({ ...reference, tag: undefined, digest: chosen.digest }, signal);
      fetched = { ...next, descriptor: { ...chosen, mediaType: next.descriptor.mediaType, size: next.bytes.length } };
    }
    return { ...fetched, parsed: fetched.parsed, index };
  }

  /** `subject` = the registry says that it has registered the manifest with its subject. */
  async put(
    repository: Repository,
    tagOrDigest: string,
    bytes: Uint8Array,
    mediaType: string,
    signal: AbortSignal,
  ): Promise<{ readonly descriptor: Descriptor; readonly hasSubject: boolean }> {
    const digest = sha256(bytes);
    if (isDigest(tagOrDigest) && tagOrDigest !== digest) throw mismatch(repository, tagOrDigest as Digest);
    const ask = {
      method: 'PUT',
      path: `manifests/${tagOrDigest}`,
      capability: 'push',
      headers: { 'content-type': mediaType },
      body: bytes,
      what: `manifest ${tagOrDigest} stored`,
    } as const;
    const hasSubject = await this.#session.send(
      repository,
      ask,
      async (answer) => {
        await dropBody(answer);
        return headerOf(answer, 'oci-subject') !== undefined;
      },
      signal,
    );
    return { descriptor: { mediaType, digest, size: bytes.length }, hasSubject };
  }
}

function askFor(reference: Reference) {
  const name = reference.digest ?? reference.tag ?? 'latest';
  return {
    method: 'GET',
    path: `manifests/${name}`,
    capability: reference.digest === undefined ? 'resolve' : 'pull',
    headers: { accept: ACCEPT },
    what: `manifest ${name}`,
  } as const;
}

function parse(bytes: Buffer, mediaType: string, repository: Repository, what: string): Manifest {
  try {
    return parseManifest(bytes, mediaType, `${what} of ${repository.name}`);
  } catch (cause) {
    if (!(cause instanceof ManifestError)) throw cause;
    throw new RegistryError('bad-answer', cause.message, { host: repository.host, repository: repository.path, cause });
  }
}

/** Indexes with one image and no platform exist; what else stands there are attestations. */
function onlyOne(manifests: readonly Descriptor[]): Descriptor | undefined {
  const [only, ...others] = manifests.filter((entry) => entry.artifactType === undefined);
  return others.length === 0 && only?.platform === undefined ? only : undefined;
}

function typeOf(contentType: string | undefined): string {
  return (contentType ?? '').split(';')[0]?.trim() ?? '';
}
