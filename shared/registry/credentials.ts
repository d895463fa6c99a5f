/** What a registry host asks for. `identityToken` is an OAuth2 refresh token in place of a password. */
export type Credential =
  | { readonly kind: 'password'; readonly username: string; readonly password: string }
  | { readonly kind: 'identity-token'; readonly identityToken: string };

/** Where credentials come from; asked once per host and token, so they may change at any time. */
export interface CredentialSource {
  /** undefined = none for this host: ask anonymously. */
  credential(host: string, signal: AbortSignal): Promise<Credential | undefined>;
}

export const anonymous: CredentialSource = { credential: () => Promise.resolve(undefined) };
