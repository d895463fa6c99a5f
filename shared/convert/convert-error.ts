/** Why an image could not be converted. Trouble with the registry comes as RegistryError. */
export type ConvertErrorCode = 'nothing-to-convert' | 'unsupported' | 'malformed';

export class ConvertError extends Error {
  override readonly name = 'ConvertError';
  readonly code: ConvertErrorCode;
  constructor(code: ConvertErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
