/** Server-sent events as values: bytes in, events and comments out. Knows nothing of models. */

export type ServerEvent = { kind: "data"; data: string } | { kind: "comment"; text: string };

/** Cuts a byte stream into events. Feed it pieces cut anywhere, even inside a character or a line ending. */
export class EventParser {
  private readonly decoder = new TextDecoder();
  private rest = "";
  private data: string[] = [];

  /** Returns what these bytes complete. */
  push(bytes: Uint8Array): ServerEvent[] {
    this.rest += this.decoder.decode(bytes, { stream: true });
    const events: ServerEvent[] = [];
    let start = 0;
    for (;;) {
      const end = nextLineEnd(this.rest, start);
      if (end === null) break;
      this.line(this.rest.slice(start, end.at), events);
      start = end.after;
    }
    this.rest = this.rest.slice(start);
    return events;
  }

  private line(line: string, events: ServerEvent[]): void {
    if (line === "") {
      if (this.data.length > 0) events.push({ kind: "data", data: this.data.join("\n") });
      this.data = [];
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) {
      events.push({ kind: "comment", text: line.slice(1).trim() });
      return;
    }
    const field = colon < 0 ? line : line.slice(0, colon);
    if (field === "data") this.data.push(colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, ""));
  }
}

/** The next line ending at or after `from`; a lone CR at the end of the text may be half of CRLF, so it waits. */
function nextLineEnd(text: string, from: number): { at: number; after: number } | null {
  for (let i = from; i < text.length; i++) {
    if (text[i] === "\n") return { at: i, after: i + 1 };
    if (text[i] === "\r") {
      if (i + 1 === text.length) return null;
      return { at: i, after: text[i + 1] === "\n" ? i + 2 : i + 1 };
    }
  }
  return null;
}
