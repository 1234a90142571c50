import { afterEach, describe, expect, test, vi } from "vitest";

import { ApiError, type Piece, answer, listModels } from "../src/api";

afterEach(() => void vi.unstubAllGlobals());

function serve(text: string, init: ResponseInit = {}): void {
  vi.stubGlobal("fetch", () => Promise.resolve(new Response(text, init)));
}

async function ask(): Promise<Piece[]> {
  const pieces: Piece[] = [];
  for await (const piece of answer("v1/chat/completions", {}, "", new AbortController().signal)) pieces.push(piece);
  return pieces;
}

const data = (chunk: unknown): string => `data: ${JSON.stringify(chunk)}\n\n`;
const delta = (fields: object, finish: string | null = null): string =>
  data({ choices: [{ index: 0, delta: fields, finish_reason: finish }] });

describe("answers", () => {
  test("come as pieces in order, with usage at the end", async () => {
    const usage = { prompt_tokens: 9, prompt_cache_hit_tokens: 4, completion_tokens: 2 };
    const last = { choices: [{ delta: { content: "" }, finish_reason: "length" }], usage };
    serve(`: keep-alive\n\n${delta({ reasoning_content: "hm" })}${delta({ content: "yes" })}${data(last)}data: [DONE]\n\n`);
    expect(await ask()).toEqual([
      { kind: "wait" },
      { kind: "reasoning", text: "hm" },
      { kind: "text", text: "yes" },
      { kind: "end", reason: "length", usage: { prompt: 9, hit: 4, completion: 2 } },
    ]);
  });

  test("hold tool calls, which grow by their number", async () => {
    const call = (index: number, fields: object): string => delta({ tool_calls: [{ index, function: fields }] });
    serve(call(0, { name: "f", arguments: "" }) + call(0, { arguments: "{}" }) + call(1, { name: "g", arguments: "" }) + delta({}, "tool_calls"));
    expect(await ask()).toEqual([
      { kind: "call", index: 0, name: "f", text: "" },
      { kind: "call", index: 0, name: "", text: "{}" },
      { kind: "call", index: 1, name: "g", text: "" },
      { kind: "end", reason: "tool_calls", usage: null },
    ]);
  });

  test("of the completions endpoint are read alike, and usage may come in a chunk of its own", async () => {
    const usage = { prompt_tokens: 1, completion_tokens: 1 };
    serve(data({ choices: [{ text: "x", finish_reason: "stop" }] }) + data({ choices: [], usage }));
    expect((await ask()).at(-1)).toEqual({ kind: "end", reason: "stop", usage: { prompt: 1, hit: 0, completion: 1 } });
  });

  test("that break off are an error, not an end", async () => {
    serve(delta({ content: "half" }));
    await expect(ask()).rejects.toMatchObject({ kind: "cut" });
  });

  test("carry the server's words and waiting time when refused", async () => {
    serve('{"error":{"message":"The queue is full."}}', { status: 503, headers: { "Retry-After": "3" } });
    await expect(ask()).rejects.toMatchObject({ kind: "refused", status: 503, retryAfter: 3, message: "The queue is full." });
  });

  test("report an error sent inside the stream", async () => {
    serve(delta({ content: "a" }) + data({ error: { message: "engine failed" } }));
    await expect(ask()).rejects.toMatchObject({ kind: "refused", message: "engine failed" });
  });

  test("say when the server cannot be reached", async () => {
    vi.stubGlobal("fetch", () => Promise.reject(new TypeError("network")));
    await expect(ask()).rejects.toBeInstanceOf(ApiError);
    await expect(listModels("")).rejects.toMatchObject({ kind: "unreachable" });
  });
});

test("models are read, with what the server says about them", async () => {
  serve('{"data":[{"id":"a"},{"id":"b","context_length":2048,"capabilities":["completion","fim"],"sampling":{"temperature":0.6,"odd":"x"}}]}');
  expect(await listModels("")).toEqual([
    { id: "a", context: null, chats: true, thinks: true, fills: true, advice: null },
    { id: "b", context: 2048, chats: false, thinks: false, fills: true, advice: { temperature: 0.6 } },
  ]);
});
