import { registerHooks } from 'node:module';

const LOCALES = '../locales/index.js';

/**
 * Loads zod without its messages in fifty languages, half of what it loads; errors are said in English all the same. For a process that
 * others wait for: whoever imports zod after this gets what was loaded here.
 */
export async function loadZod(): Promise<void> {
  const hooks = registerHooks({
    resolve: (specifier, context, next) =>
      specifier === LOCALES && context.parentURL?.includes('/node_modules/zod/') === true
        ? { url: 'data:text/javascript,', format: 'module', shortCircuit: true }
        : next(specifier, context),
  });
  try {
    await import('zod');
  } finally {
    // Others would pay for it at each of their imports.
    hooks.deregister();
  }
}
