/**
 * Markdown to elements, safe by construction: marked only cuts the text into tokens, and every token becomes an element
 * made here. Raw HTML in the text is shown as text, and nothing is loaded from elsewhere.
 */

import type { MarkedToken, Token, Tokens } from "marked";

import { copyButton, h } from "./dom";
import { GrowingText } from "./growing-text";
import { lazy } from "./lazy";
import type { Formula } from "./math-syntax";

const colours = lazy(() => import("./highlight"));
const formulas = lazy(() => import("./maths"));

/** Larger tables are shown as text. */
const MAX_CELLS = 20_000;

/** Shows a growing text: only the blocks that changed since the last call are built again. */
export class MarkdownView {
  readonly element = h("div", { class: "markdown" });
  private readonly growing = new GrowingText();
  private text = "";
  private shown: string[] = [];

  update(text: string): void {
    if (text === this.text) return;
    this.text = text;
    const { definitions } = this.growing;
    const blocks = this.growing.cut(text);
    if (definitions !== this.growing.definitions) this.shown = [];
    let same = 0;
    while (same < this.shown.length && this.shown[same] === blocks[same]?.raw) same += 1;
    while (this.element.childNodes.length > same) this.element.lastChild?.remove();
    for (const block of blocks.slice(same)) this.element.append(wrap(render(block)));
    this.shown = blocks.map((block) => block.raw);
  }
}

/** One node for each block, so that blocks and nodes can be counted alike. */
function wrap(nodes: Node[]): Node {
  return nodes.length === 1 && nodes[0] instanceof HTMLElement ? nodes[0] : h("p", {}, ...nodes);
}

function renderAll(tokens: readonly Token[] | undefined): Node[] {
  return (tokens ?? []).flatMap(render);
}

function render(token: Token): Node[] {
  if (token.type === "math") return [formula(token as unknown as Formula)];
  const known = token as MarkedToken;
  switch (known.type) {
    case "space":
    case "def":
      return [];
    case "paragraph":
      return [h("p", {}, ...renderAll(known.tokens))];
    case "heading":
      return [heading(known)];
    case "code":
      return [codeBlock(known.text, known.lang ?? "")];
    case "blockquote":
      return [h("blockquote", {}, ...renderAll(known.tokens))];
    case "list":
      return [list(known)];
    case "table":
      return [known.rows.length * known.header.length > MAX_CELLS ? codeBlock(known.raw, "") : table(known)];
    case "hr":
      return [h("hr")];
    default:
      return inline(known);
  }
}

function inline(token: MarkedToken): Node[] {
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return [h(token.type, {}, ...renderAll(token.tokens))];
    case "codespan":
      return [h("code", {}, token.text)];
    case "br":
      return [h("br")];
    case "link":
      return [link(token.href, renderAll(token.tokens))];
    case "image":
      // An image would be a request to another server, so its address is offered instead.
      return [link(token.href, [document.createTextNode(token.text || "image")])];
    case "text":
      return token.tokens ? renderAll(token.tokens) : [document.createTextNode(decodeEntities(token.text))];
    case "escape":
      return [document.createTextNode(token.text)];
    case "checkbox":
      return [h("input", { type: "checkbox", disabled: true, checked: token.checked, "aria-label": "task" })];
    default:
      return [document.createTextNode(token.raw)];
  }
}

function heading(token: Tokens.Heading): HTMLElement {
  // The page's own headings come first, so an answer's begin one level below.
  const level = Math.min(token.depth + 1, 6) as 2 | 3 | 4 | 5 | 6;
  return h(`h${level}`, {}, ...renderAll(token.tokens));
}

function list(token: Tokens.List): HTMLElement {
  const items = token.items.map((item) => h("li", { class: item.task ? "task" : "" }, ...renderAll(item.tokens)));
  if (!token.ordered) return h("ul", {}, ...items);
  return h("ol", { start: String(token.start === "" ? 1 : token.start) }, ...items);
}

function table(token: Tokens.Table): HTMLElement {
  const cell = (tag: "th" | "td", { align, tokens }: Tokens.TableCell): HTMLElement =>
    h(tag, { class: align ? `align-${align}` : "" }, ...renderAll(tokens));
  const head = h("tr", {}, ...token.header.map((each) => cell("th", each)));
  const rows = token.rows.map((row) => h("tr", {}, ...row.map((each) => cell("td", each))));
  const element = h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows));
  return h("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": "Table" }, element);
}

export function codeBlock(code: string, info: string): HTMLElement {
  const language = info.trim().split(/\s/, 1)[0] ?? "";
  const body = h("code", {}, code);
  if (language) colours.use(({ highlight }) => body.replaceChildren(highlight(code, language.toLowerCase())));
  return h(
    "div",
    { class: "code-block" },
    h("div", { class: "code-bar" }, h("span", {}, language || "code"), copyButton("Copy code", () => code)),
    h("pre", { tabindex: "0" }, body),
  );
}

/** A formula, typeset once the part of the page that does it is here; one that cannot be read stays as it was written. */
function formula({ raw, tex, display, closed }: Formula): HTMLElement {
  const source = raw.trim();
  const element = h("span", { class: display ? "math display" : "math", "data-source": source }, source);
  if (!closed || !tex.trim()) return element;
  formulas.use(({ typeset }) => {
    try {
      element.replaceChildren(typeset(tex, display));
      element.classList.add("set");
    } catch {
      element.title = "This formula could not be typeset.";
    }
  });
  return element;
}

/** Only addresses that open a page or a mail; anything else (javascript:, data:, …) stays text. */
function link(href: string, children: Node[]): HTMLElement {
  if (!/^(https?:\/\/|mailto:)/i.test(href)) return h("span", {}, ...children);
  return h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

const ENTITIES: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

/** Character references that Markdown allows in text, as the characters they stand for. */
function decodeEntities(text: string): string {
  return text.replace(/&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(\w{2,8}));/g, (whole, decimal, hex, name) => {
    if (name) return ENTITIES[name as string] ?? whole;
    const point = decimal ? Number(decimal) : Number.parseInt(hex as string, 16);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : "\ufffd";
  });
}
