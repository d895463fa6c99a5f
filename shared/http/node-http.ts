/**
 * node:http without what an `import` of it brings along. That reads every export for the module's namespace, and reading
 * `http.WebSocket` loads node's built-in fetch: some 70 ms of a start and 12 MiB in each process. Types are imported as ever.
 */
export const { createServer, request } = process.getBuiltinModule('node:http');
