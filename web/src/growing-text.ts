/** A growing Markdown text, cut into blocks: what more text can no longer change is not cut again. */

import { type Token, type TokensList, Marked } from "marked";

import { BoundedLexer } from "./bounded-lexer";
import { MATH_BLOCK, MATH_INLINE, maskMath } from "./math-syntax";

const { defaults } = new Marked({ extensions: [MATH_BLOCK, MATH_INLINE], hooks: { emStrongMask: maskMath } });
/** Longer texts are shown as they are: marking them up would hold up the page. */
const MAX_CHARS = 400_000;
/** So many blocks at the end may still change: more text changes the last, and what an empty line parts from it is done. */
const OPEN_BLOCKS = 3;

export class GrowingText {
  /** The beginning that is done, which ends with an empty line, and its blocks. */
  private done = "";
  private readonly blocks: Token[] = [];
  /** What the text defines for its links; when it changes, blocks written the same may mean something else. */
  definitions = "";

  /** The blocks of a text; what cannot be cut, however it is written, is one block of plain text. */
  cut(text: string): Token[] {
    if (text.length > MAX_CHARS) return [plain(text)];
    if (!text.startsWith(this.done)) this.forget();
    try {
      let rest = lex(text.slice(this.done.length));
      // What a definition names may stand anywhere before it.
      if (this.done && rest.some(({ type }) => type === "def")) {
        this.forget();
        rest = lex(text);
      }
      this.definitions = JSON.stringify(rest.links);
      const all = [...this.blocks, ...rest];
      this.settle(rest);
      return all.filter(({ type }) => type !== "space" && type !== "def");
    } catch {
      return [plain(text)];
    }
  }

  private settle(rest: TokensList): void {
    const open = rest.findIndex((token) => token.type === "math" && !token["closed"]);
    if (rest.some(({ type, raw }) => type === "def" || raw.includes("\r"))) return;
    let behind = 0;
    for (let at = rest.length - 1; at >= 0; at--) {
      const isSpace = rest[at]?.type === "space";
      if (!isSpace) behind += 1;
      if (!isSpace || behind < OPEN_BLOCKS || (open >= 0 && at > open)) continue;
      const done = rest.slice(0, at + 1);
      this.blocks.push(...done);
      this.done += done.map(({ raw }) => raw).join("");
      return;
    }
  }

  private forget(): void {
    this.done = "";
    this.blocks.length = 0;
  }
}

function lex(text: string): TokensList {
  return new BoundedLexer(defaults).lex(text);
}

function plain(text: string): Token {
  return { type: "html", raw: text, text } as Token;
}
