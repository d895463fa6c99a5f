import type { IncomingMessage } from 'node:http';
import { createInterface } from 'node:readline';
import type { z } from 'zod';
import { deadLetterView, type DeadLetterView } from '#shared/events/dead-letter.ts';
import { request as httpRequest } from '#shared/http/node-http.ts';
import {
  agentStatus,
  controlFailure,
  deadLetterReply,
  CONTROL_LIMITS,
  layerStatus,
  pullEvent,
  trace,
  type AgentStatus,
  type DeadLetterRequest,
  type LayerStatus,
  type PullEvent,
  type PullRequest,
  type Trace,
} from './control-protocol.ts';

export type ControlErrorCode = 'unreachable' | 'refused' | 'bad-answer';

export class ControlError extends Error {
  override readonly name = 'ControlError';
  readonly code: ControlErrorCode;
  constructor(code: ControlErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Asks the agent of this machine. Every method rejects with ControlError. */
export class ControlClient {
  readonly #socket: string;

  constructor(socket: string) {
    this.#socket = socket;
  }

  status(signal: AbortSignal): Promise<AgentStatus> {
    return this.#get('/v1/status', agentStatus, signal);
  }
  layers(signal: AbortSignal): Promise<LayerStatus[]> {
    return this.#get('/v1/layers', layerStatus.array(), signal);
  }
  /** What happened after event `since`; undefined: only the number of the last one. */
  trace(since: number | undefined, signal: AbortSignal): Promise<Trace> {
    return this.#get(since === undefined ? '/v1/trace' : `/v1/trace?since=${since}`, trace, signal);
  }
  deadLetters(limit: number, signal: AbortSignal): Promise<DeadLetterView[]> {
    return this.#get(`/v1/dead-letters?limit=${limit}`, deadLetterView.array(), signal);
  }
  /** Resolves to false where there is no such letter. */
  async settleDeadLetter(request: DeadLetterRequest, signal: AbortSignal): Promise<boolean> {
    return parse(await body(await this.#request('POST', '/v1/dead-letters', request, signal)), deadLetterReply).found;
  }
  async reload(signal: AbortSignal): Promise<void> {
    await body(await this.#request('POST', '/v1/reload', undefined, signal));
  }
  async *pull(request: PullRequest, signal: AbortSignal): AsyncGenerator<PullEvent> {
    const response = await this.#request('POST', '/v1/pull', request, signal);
    for await (const line of createInterface({ input: response, crlfDelay: Infinity })) {
      if (line !== '') yield parse(line, pullEvent);
    }
  }

  async #get<S extends z.ZodType>(path: string, schema: S, signal: AbortSignal): Promise<z.infer<S>> {
    return parse(await body(await this.#request('GET', path, undefined, signal)), schema);
  }

  async #request(method: string, path: string, json: unknown, signal: AbortSignal): Promise<IncomingMessage> {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const request = httpRequest({ socketPath: this.#socket, method, path, signal });
      request.once('response', resolve);
      request.once('error', (cause) => {
        const why = 'code' in cause && cause.code === 'EACCES' ? 'run this as root' : 'is it running? (kindling up)';
        reject(
          signal.aborted
            ? signal.reason
            : new ControlError('unreachable', `Cannot reach the agent on ${this.#socket}: ${why}`, { cause }),
        );
      });
      request.end(json === undefined ? undefined : JSON.stringify(json));
    });
    if ((response.statusCode ?? 0) < 400) return response;
    const { message } = parse(await body(response), controlFailure);
    throw new ControlError('refused', message);
  }
}

async function body(response: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of response as AsyncIterable<Buffer>) {
    size += part.length;
    if (size > CONTROL_LIMITS.answerBytes) {
      response.destroy();
      throw new ControlError('bad-answer', `The agent's answer is longer than ${CONTROL_LIMITS.answerBytes} bytes`);
    }
    parts.push(part);
  }
  return Buffer.concat(parts).toString();
}

function parse<S extends z.ZodType>(text: string, schema: S): z.infer<S> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new ControlError('bad-answer', `The agent answered what is not JSON: ${text.slice(0, 100)}`, { cause });
  }
  const parsed = schema.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new ControlError(
      'bad-answer',
      `The agent's answer is not understood (${issue?.path.join('.')}: ${issue?.message}): is it of another version?`,
    );
  }
  return parsed.data;
}
