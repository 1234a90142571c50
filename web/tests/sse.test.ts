import { describe, expect, test } from "vitest";

import { EventParser, type ServerEvent } from "../src/sse";

const encode = (text: string): Uint8Array => new TextEncoder().encode(text);

function parse(...pieces: Uint8Array[]): ServerEvent[] {
  const parser = new EventParser();
  return pieces.flatMap((piece) => parser.push(piece));
}

describe("server-sent events", () => {
  const text = ': keep-alive\n\ndata: {"a":"é💧"}\r\n\r\ndata: one\ndata: two\n\nid: 7\nevent: x\ndata:tight\n\ndata: [DONE]\n\n';
  const events: ServerEvent[] = [
    { kind: "comment", text: "keep-alive" },
    { kind: "data", data: '{"a":"é💧"}' },
    { kind: "data", data: "one\ntwo" },
    { kind: "data", data: "tight" },
    { kind: "data", data: "[DONE]" },
  ];

  test("reads data, comments, several data lines and all line endings", () => {
    expect(parse(encode(text))).toEqual(events);
    expect(parse(encode(text.replaceAll("\r\n", "\n").replaceAll("\n", "\r")), encode("\n"))).toEqual(events);
  });

  test("gives the same events wherever the bytes are cut", () => {
    const bytes = encode(text);
    for (let at = 1; at < bytes.length; at++) {
      expect(parse(bytes.slice(0, at), bytes.slice(at))).toEqual(events);
    }
    expect(parse(...Array.from(bytes, (byte) => Uint8Array.of(byte)))).toEqual(events);
  });

  test("keeps back an event that has not ended", () => {
    expect(parse(encode("data: half"))).toEqual([]);
    expect(parse(encode("data: half\n"))).toEqual([]);
  });
});
