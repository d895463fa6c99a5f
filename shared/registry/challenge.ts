/** What a registry's 401 asks for. */
export type Challenge =
  | { readonly kind: 'basic' }
  | {
      readonly kind: 'bearer';
      readonly realm: string;
      readonly service: string | undefined;
      readonly scope: string | undefined;
    };

/** Characters of a `WWW-Authenticate` header that are looked at. */
const MAX_CHARS = 8192;

/**
 * Reads `WWW-Authenticate` (RFC 9110, several challenges may share a header); Bearer wins over Basic. undefined when it
 * holds neither.
 */
export function parseChallenge(header: string): Challenge | undefined {
  const text = header.slice(0, MAX_CHARS);
  let basic = false;
  let scheme = '';
  let bearer: Map<string, string> | undefined;
  // A scheme is a word that is not followed by "="; a parameter is name=token or name="quoted".
  for (const match of text.matchAll(/([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))|([A-Za-z][\w-]*)/g)) {
    const [, name, quoted, token, word] = match;
    if (word !== undefined) {
      scheme = word.toLowerCase();
      if (scheme === 'basic') basic = true;
      else if (scheme === 'bearer') bearer ??= new Map();
    } else if (scheme === 'bearer' && name !== undefined) {
      bearer?.set(name.toLowerCase(), quoted?.replaceAll(/\\(.)/g, '$1') ?? token ?? '');
    }
  }
  const realm = bearer?.get('realm');
  if (realm) {
    return {
      kind: 'bearer',
      realm,
      service: bearer?.get('service') || undefined,
      scope: bearer?.get('scope') || undefined,
    };
  }
  return basic ? { kind: 'basic' } : undefined;
}
