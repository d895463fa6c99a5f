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

export const silentLogger: Logger = pino({ level: 'silent' });
