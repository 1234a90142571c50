/** The server's API as the page uses it: the model list, and answers as a stream of pieces. */

import { EventParser } from "./sse";

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
  reasoning_content?: string;
  /** On a last assistant message: the model goes on with it. */
  prefix?: true;
}

export interface Model {
  id: string;
  /** Tokens of context, when the server says so. */
  context: number | null;
  /** Whether the model was trained to chat; a model that only continues text opens in the Complete mode. */
  chats: boolean;
  /** Whether the model can think before it answers. */
  thinks: boolean;
  /** Whether the model fills the gap between two texts. */
  fills: boolean;
  /** What the model's files advise, by request field: the server's defaults. Null: nothing. */
  advice: Record<string, number> | null;
}

export interface Usage {
  prompt: number;
  hit: number;
  completion: number;
}

/** "wait" is a keep-alive: the request is queued. A "call" adds to the tool call of that number. "end" comes once, last. */
export type Piece =
  | { kind: "text"; text: string }
  | { kind: "reasoning"; text: string }
  | { kind: "call"; index: number; name: string; text: string }
  | { kind: "wait" }
  | { kind: "end"; reason: string; usage: Usage | null };

/** An object whose fields are still to be read. */
export type Json = Record<string, unknown>;

/** Relative to the page, which may be served below any path. */
export type Endpoint = "v1/chat/completions" | "v1/completions";

/** "refused": the server said no. "unreachable": no answer at all. "cut": the answer broke off. */
export class ApiError extends Error {
  constructor(
    readonly kind: "refused" | "unreachable" | "cut",
    message: string,
    readonly status = 0,
    readonly retryAfter: number | null = null,
    /** The server's own name for the refusal. */
    readonly code = "",
  ) {
    super(message);
  }
}

export async function listModels(key: string, signal?: AbortSignal): Promise<Model[]> {
  const response = await send("v1/models", { headers: authorization(key), ...(signal ? { signal } : {}) });
  const body: unknown = await response.json().catch(() => null);
  const data = isRecord(body) && Array.isArray(body["data"]) ? body["data"] : [];
  return data.filter(isRecord).map(readModel);
}

/** What the account of a key has, as texts such as "12.50 USD"; none where the server keeps no accounts or does not say. */
export async function balances(key: string): Promise<string[]> {
  try {
    const response = await send("user/balance", { headers: authorization(key) });
    const body: unknown = await response.json();
    const infos = isRecord(body) && Array.isArray(body["balance_infos"]) ? body["balance_infos"] : [];
    return infos.filter(isRecord).map((info) => `${text(info["total_balance"])} ${text(info["currency"])}`);
  } catch {
    return [];
  }
}

/** Asks for an answer and yields its pieces. Throws ApiError; an aborted signal throws the signal's AbortError. */
export async function* answer(
  endpoint: Endpoint,
  body: Record<string, unknown>,
  key: string,
  signal: AbortSignal,
): AsyncGenerator<Piece> {
  const response = await send(endpoint, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream", ...authorization(key) },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.body) throw new ApiError("cut", "The server sent an empty answer.");
  const ending: Ending = { reason: null, usage: null };
  for await (const data of events(response.body, signal)) {
    if (data === null) {
      yield { kind: "wait" };
    } else if (data === "[DONE]") {
      break;
    } else {
      yield* readChunk(data, ending);
    }
  }
  if (ending.reason === null) throw new ApiError("cut", "The connection was lost before the answer was complete.");
  yield { kind: "end", reason: ending.reason, usage: ending.usage };
}

interface Ending {
  reason: string | null;
  usage: Usage | null;
}

/** Throws ApiError for anything but a success. */
export async function send(path: string, init: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError("unreachable", "The server cannot be reached.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response: Response): Promise<ApiError> {
  const body: unknown = await response.json().catch(() => null);
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  const message = errorMessage(body) ?? `The server answered ${response.status} ${response.statusText}`.trim();
  return new ApiError("refused", message, response.status, Number.isNaN(seconds) ? null : seconds, errorCode(body));
}

/** Yields each event's data, and null for each comment. */
async function* events(stream: ReadableStream<Uint8Array>, signal: AbortSignal): AsyncGenerator<string | null> {
  const parser = new EventParser();
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      for (const event of parser.push(value)) yield event.kind === "data" ? event.data : null;
    }
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError("cut", "The connection was lost before the answer was complete.");
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

function* readChunk(data: string, ending: Ending): Generator<Piece> {
  const chunk = parse(data);
  if (!isRecord(chunk)) throw new ApiError("cut", "The server sent a piece of answer that is not JSON.");
  const failure = errorMessage(chunk);
  if (failure !== null) throw new ApiError("refused", failure);
  if (isRecord(chunk["usage"])) ending.usage = readUsage(chunk["usage"]);
  const choice: unknown = Array.isArray(chunk["choices"]) ? chunk["choices"][0] : null;
  if (!isRecord(choice)) return;
  const delta = isRecord(choice["delta"]) ? choice["delta"] : {};
  const reasoning = text(delta["reasoning_content"]);
  const content = text(delta["content"]) || text(choice["text"]);
  if (reasoning) yield { kind: "reasoning", text: reasoning };
  if (content) yield { kind: "text", text: content };
  for (const call of Array.isArray(delta["tool_calls"]) ? delta["tool_calls"].filter(isRecord) : []) {
    const called = isRecord(call["function"]) ? call["function"] : {};
    yield { kind: "call", index: count(call["index"]), name: text(called["name"]), text: text(called["arguments"]) };
  }
  if (typeof choice["finish_reason"] === "string") ending.reason = choice["finish_reason"];
}

function readUsage(usage: Record<string, unknown>): Usage {
  return {
    prompt: count(usage["prompt_tokens"]),
    hit: count(usage["prompt_cache_hit_tokens"]),
    completion: count(usage["completion_tokens"]),
  };
}

function readModel(entry: Record<string, unknown>): Model {
  const stated = entry["capabilities"];
  const can = (skill: string): boolean => !Array.isArray(stated) || stated.includes(skill);
  return {
    id: text(entry["id"]),
    context: count(entry["context_length"]) || null,
    chats: can("chat"),
    thinks: can("thinking"),
    fills: can("fim"),
    advice: readAdvice(entry["sampling"]),
  };
}

function readAdvice(sampling: unknown): Record<string, number> | null {
  const fields = Object.entries(isRecord(sampling) ? sampling : {});
  const advised = fields.filter((field): field is [string, number] => typeof field[1] === "number");
  return advised.length > 0 ? Object.fromEntries(advised) : null;
}

function errorMessage(body: unknown): string | null {
  const error = isRecord(body) ? body["error"] : null;
  return isRecord(error) && typeof error["message"] === "string" ? error["message"] : null;
}

function errorCode(body: unknown): string {
  const error = isRecord(body) ? body["error"] : null;
  return isRecord(error) ? text(error["code"]) : "";
}

export function authorization(key: string): Record<string, string> {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function parse(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return null;
  }
}

export function isRecord(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export const text = (value: unknown): string => (typeof value === "string" ? value : "");
export const count = (value: unknown): number => (typeof value === "number" ? value : 0);
