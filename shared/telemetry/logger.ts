import { pino, type Logger } from 'pino';

export type { Logger };

/** JSON lines on stderr; credentials never reach a line: headers and tokens are redacted by path. */
export function createLogger(service: string, level = 'info'): Logger {
  return pino(
    {
      name: service,
      level,
      base: { service },
      timestamp: pino.stdTimeFunctions.isoTime,
      serializers: { err: errorFields },
      redact: {
        paths: [
          'authorization',
          '*.authorization',
          'headers',
          '*.headers',
          'token',
          '*.token',
          'password',
          '*.password',
          'capability',
          '*.capability',
        ],
        censor: '(redacted)',
      },
    },
    pino.destination({ dest: 2, sync: true }),
  );
}

/** An error of ioredis carries the command that failed with all its arguments: passwords and keys. */
function errorFields(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const { command: _left, ...fields } = pino.stdSerializers.err(error) as object & { readonly command?: unknown };
  return fields;
}

export const silentLogger: Logger = pino({ level: 'silent' });
