import { isDigest, type Digest } from '#shared/digest/digest.ts';

/** `host[:port]/path`, without tag or digest; the form in which origins and indexes name a repository. */
export type RepositoryName = string;

/** A parsed image reference. Without tag and digest given, the tag is `latest`. */
export interface Reference {
  /** `host[:port]`, lower case; `docker.io` where the text names none. */
  readonly host: string;
  /** Path on the host, such as `library/python`. */
  readonly path: string;
  /** `host/path`. */
  readonly repository: RepositoryName;
  readonly tag: string | undefined;
  readonly digest: Digest | undefined;
}

export class ImageReferenceError extends Error {
  override readonly name = 'ImageReferenceError';
  readonly code = 'invalid';
}

export const REFERENCE_LIMITS = {
  /** Characters of a repository with its host; the limit of the distribution specification's grammar. */
  nameChars: 255,
  /** Characters of a whole reference: name, tag (128), digest. */
  chars: 512,
} as const;

const DEFAULT_HOST = 'docker.io';
const DEFAULT_TAG = 'latest';

const HOST =
  /^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*|\[[0-9a-f:.]+\])(?::\d{1,5})?$/;
const PATH = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const TAG = /^\w[\w.-]{0,127}$/;

/**
 * Parses `[host[:port]/]path[:tag][@digest]` as Docker and containerd do: a first part without dot, colon or port that is
 * not `localhost` belongs to the path, and Docker Hub's one-part names are under `library/`.
 *
 * @throws ImageReferenceError that says which part is wrong.
 */
export function parseReference(text: string): Reference {
  const shown = JSON.stringify(text.slice(0, 120));
  if (text.length > REFERENCE_LIMITS.chars) {
    throw new ImageReferenceError(
      `Cannot parse image reference ${shown}: longer than ${REFERENCE_LIMITS.chars} characters`,
    );
  }
  let rest = text;
  let digest: Digest | undefined;
  const at = rest.indexOf('@');
  if (at >= 0) {
    const written = rest.slice(at + 1);
    if (!isDigest(written)) {
      throw new ImageReferenceError(
        `Cannot parse image reference ${shown}: after "@" must be "sha256:" and 64 hex digits`,
      );
    }
    digest = written;
    rest = rest.slice(0, at);
  }
  let tag: string | undefined;
  const colon = rest.lastIndexOf(':');
  if (colon > rest.lastIndexOf('/')) {
    tag = rest.slice(colon + 1);
    rest = rest.slice(0, colon);
    if (!TAG.test(tag)) {
      throw new ImageReferenceError(
        `Cannot parse image reference ${shown}: tag ${JSON.stringify(tag)} must be up to 128 letters, digits, "_", "." or "-"`,
      );
    }
  }
  const { host, path } = splitRepository(rest, shown);
  return {
    host,
    path,
    repository: `${host}/${path}`,
    tag: tag ?? (digest === undefined ? DEFAULT_TAG : undefined),
    digest,
  };
}

/** Parses `[host[:port]/]path`. @throws ImageReferenceError */
export function parseRepository(name: RepositoryName): { readonly host: string; readonly path: string } {
  return splitRepository(name, JSON.stringify(name.slice(0, 120)));
}

/** What a digest names in a repository. */
export function referenceTo(repository: RepositoryName, digest: Digest): Reference {
  const slash = repository.indexOf('/');
  return { host: repository.slice(0, slash), path: repository.slice(slash + 1), repository, tag: undefined, digest };
}

/** As one writes it: `host/path[:tag][@digest]`. */
export function formatReference(reference: Pick<Reference, 'repository' | 'tag' | 'digest'>): string {
  const tag = reference.tag === undefined ? '' : `:${reference.tag}`;
  return `${reference.repository}${tag}${reference.digest === undefined ? '' : `@${reference.digest}`}`;
}

function splitRepository(name: string, shown: string): { host: string; path: string } {
  const slash = name.indexOf('/');
  const first = slash < 0 ? '' : name.slice(0, slash);
  const hasHost = first === 'localhost' || /[.:]/.test(first) || first !== first.toLowerCase();
  let host = hasHost ? first.toLowerCase() : DEFAULT_HOST;
  let path = hasHost ? name.slice(slash + 1) : name;
  if (host === 'index.docker.io' || host === 'registry-1.docker.io') host = DEFAULT_HOST;
  if (host === DEFAULT_HOST && path !== '' && !path.includes('/')) path = `library/${path}`;
  if (!HOST.test(host) || Number(/:(\d+)$/.exec(host)?.[1] ?? 1) > 65_535) {
    throw new ImageReferenceError(
      `Cannot parse image reference ${shown}: ${JSON.stringify(host)} is not a host[:port]`,
    );
  }
  if (!PATH.test(path)) {
    throw new ImageReferenceError(
      `Cannot parse image reference ${shown}: repository ${JSON.stringify(path)} must be lower-case letters, digits and single separators, in parts divided by "/"`,
    );
  }
  if (host.length + path.length + 1 > REFERENCE_LIMITS.nameChars) {
    throw new ImageReferenceError(
      `Cannot parse image reference ${shown}: host and repository are longer than ${REFERENCE_LIMITS.nameChars} characters`,
    );
  }
  return { host, path };
}
