/** Tables, a page of rows at a time: a table of any length stays quick. */

import { type Child, h } from "./dom";

export interface Head {
  label: string;
  /** Numbers stand at the right. */
  number?: true;
}

export type Cell = Child;

const ROWS = 50;

export function table(caption: string, heads: readonly Head[], rows: readonly (readonly Cell[])[]): HTMLElement {
  const top = h("tr", {}, ...heads.map(({ label, number }) => h("th", { scope: "col", class: number ? "number" : "" }, label)));
  const body = rows.map((row) =>
    h("tr", {}, ...row.map((cell, at) =>
      at === 0 ? h("th", { scope: "row" }, cell) : h("td", { class: heads[at]?.number ? "number" : "" }, cell))),
  );
  return h("div", { class: "table", tabindex: "0", role: "group", "aria-label": caption },
    h("table", {}, h("caption", { class: "offscreen" }, caption), h("thead", {}, top), h("tbody", {}, ...body)));
}

/** All rows at hand, shown page by page. */
export function pagedTable(caption: string, heads: readonly Head[], rows: readonly (readonly Cell[])[]): HTMLElement {
  const place = h("div", {});
  const show = (from: number): void => {
    const turning = rows.length > ROWS ? turn(from > 0 ? () => show(from - ROWS) : null, from + ROWS < rows.length ? () => show(from + ROWS) : null,
      `${from + 1}–${Math.min(from + ROWS, rows.length)} of ${rows.length}`) : null;
    place.replaceChildren(...[table(caption, heads, rows.slice(from, from + ROWS)), turning].filter((part) => part !== null));
  };
  show(0);
  return place;
}

/** Buttons to the page before and the one behind; null where there is none. */
export function turn(back: (() => void) | null, forward: (() => void) | null, where: string): HTMLElement {
  const button = (label: string, run: (() => void) | null): HTMLElement =>
    h("button", { type: "button", class: "quiet", disabled: run === null, onclick: () => run?.() }, label);
  return h("div", { class: "row turning" }, button("Previous", back), h("span", { class: "hint" }, where), button("Next", forward));
}
