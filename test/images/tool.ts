import { spawn } from 'node:child_process';

/** Kept of a tool's error output for the message. */
const ERROR_CHARS = 4_000;

/** Runs a program to its end and returns its stdout. Its own temp files and locale do not matter. @throws Error with stderr */
export async function runTool(
  program: string,
  args: readonly string[],
  signal: AbortSignal,
  options: { readonly stdin?: string; readonly env?: NodeJS.ProcessEnv; readonly cwd?: string } = {},
): Promise<string> {
  const child = spawn(program, args, {
    stdio: ['pipe', 'pipe', 'pipe'],
    signal,
    killSignal: 'SIGTERM',
    env: options.env ?? process.env,
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
  child.stdin.on('error', () => {
    // The program does not want its input; its exit code says whether that matters.
  });
  child.stdin.end(options.stdin ?? '');
  const out: Buffer[] = [];
  let errors = '';
  child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors = (errors + text).slice(-ERROR_CHARS);
  });
  const [code, killedBy] = await new Promise<[number | null, string | null]>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (exitCode, exitSignal) => resolve([exitCode, exitSignal]));
  });
  const stdout = Buffer.concat(out).toString('utf8');
  if (code !== 0) {
    const shown = [program, ...args].join(' ').slice(0, 200);
    throw new Error(`Cannot run ${shown}: ended with ${code ?? killedBy}\n${errors || stdout.slice(-ERROR_CHARS)}`);
  }
  return stdout;
}
