/** Where maths stands in a Markdown text: `\( \)`, `\[ \]`, `$$ $$`, `$ $` and LaTeX's environments. */

import type { TokenizerExtension } from "marked";

export interface Formula {
  type: "math";
  /** As it was written, delimiters included. */
  raw: string;
  /** Between the delimiters. */
  tex: string;
  display: boolean;
  /** False while its end has not come: it is shown as it is written. */
  closed: boolean;
}

/** A formula is shorter; so a lone opening never makes the search for an end long. */
const MAX_CHARS = 20_000;
const PAIRS = [
  { open: "\\(", close: "\\)", display: false },
  { open: "\\[", close: "\\]", display: true },
  { open: "$$", close: "$$", display: true },
] as const;
const ENVIRONMENT = /^\\begin\{((?:equation|align|alignat|gather|multline|eqnarray|[pbvBV]?matrix|cases)\*?)\}/;
/**
 * A dollar opens before a character that is no space, closes after one, and what it closes is not followed by a letter or a
 * digit ("$5 and $6", "$HOME:$PATH"), except for the endings of numerals ("$n$th").
 */
const DOLLARS = /^\$(?![\s$])((?:\\[^\n]|[^\\$\n]|\n(?![ \t]*\n)){0,1000}?(?:\\[^\n]|[^\\$\s]))\$(?!\$)(?!(?!(?:th|st|nd|rd|s)\b)\w)/;
const LINE_START = /(?:^|\n)( {0,3})(?=\$\$|\\\[|\\begin\{)/;

/** Whether a line of the text begins a formula of its own. */
export function hasOwnLine(text: string): boolean {
  return LINE_START.test(text);
}

/** A formula at the beginning of a text; null if there is none. */
export function readMath(text: string): Formula | null {
  const pair = PAIRS.find(({ open }) => text.startsWith(open));
  if (pair) return between(text, pair.open.length, pair.close, pair.display);
  const name = ENVIRONMENT.exec(text)?.[1];
  if (name) return environment(text, `\\end{${name}}`);
  const found = DOLLARS.exec(text);
  return found ? { type: "math", raw: found[0], tex: found[1] ?? "", display: false, closed: true } : null;
}

function between(text: string, from: number, close: string, display: boolean): Formula {
  const end = closing(text, from, close);
  if (end === null) return open(text, display);
  return { type: "math", raw: text.slice(0, end + close.length), tex: text.slice(from, end), display, closed: true };
}

function environment(text: string, close: string): Formula {
  const end = closing(text, 0, close);
  if (end === null) return open(text, true);
  const raw = text.slice(0, end + close.length);
  return { type: "math", raw, tex: raw, display: true, closed: true };
}

/** The end has not come yet, or never will: the rest of the paragraph is what was written. */
function open(text: string, display: boolean): Formula {
  const raw = text.split(/\n[ \t]*\n/, 1)[0] ?? text;
  return { type: "math", raw, tex: "", display, closed: false };
}

/** Where `close` stands, not counting one whose first character is escaped. */
function closing(text: string, from: number, close: string): number | null {
  const searched = text.slice(0, MAX_CHARS);
  for (let at = searched.indexOf(close, from); at >= 0; at = searched.indexOf(close, at + 1)) {
    let slashes = 0;
    while (at - slashes > from && text[at - slashes - 1] === "\\") slashes += 1;
    if (slashes % 2 === 0) return at;
  }
  return null;
}

/** Formulas on lines of their own, where Markdown would see lists and headings in them. */
export const MATH_BLOCK: TokenizerExtension = {
  name: "math",
  level: "block",
  start: (text) => {
    const found = /\n {0,3}(?=\$\$|\\\[|\\begin\{)/.exec(text);
    return found ? found.index + 1 : undefined;
  },
  tokenizer(text) {
    const indent = /^ {0,3}/.exec(text)?.[0] ?? "";
    const body = text.slice(indent.length);
    if (!/^(?:\$\$|\\\[|\\begin\{)/.test(body)) return undefined;
    const math = readMath(body);
    if (!math) return undefined;
    const rest = /^[ \t]*(?:\n|$)/.exec(body.slice(math.raw.length));
    return rest ? { ...math, raw: indent + math.raw + rest[0] } : undefined;
  },
};

export const MATH_INLINE: TokenizerExtension = {
  name: "math",
  level: "inline",
  start: (text) => {
    const at = text.search(/\$|\\[([]|\\begin\{/);
    return at < 0 ? undefined : at;
  },
  tokenizer: (text) => readMath(text) ?? undefined,
};

/** The text with formulas blotted out, so that no `*` or `_` in them is taken for emphasis. */
export function maskMath(text: string): string {
  let masked = "";
  for (let rest = text; rest; ) {
    const at = rest.search(/\$|\\[([]|\\\\/);
    if (at < 0) return masked + rest;
    const math = readMath(rest.slice(at));
    const length = math?.closed ? math.raw.length : rest.startsWith("\\\\", at) ? 2 : 1;
    masked += rest.slice(0, at) + (math?.closed ? "a".repeat(length) : rest.slice(at, at + length));
    rest = rest.slice(at + length);
  }
  return masked;
}
