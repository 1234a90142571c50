/** A list from the server, a page at a time, found by a part of a name. */

import type { Page } from "./desk";
import { h } from "./dom";
import type { Paper } from "./paper";
import { type Cell, type Head, table, turn } from "./table";

const LIMIT = 50;
const TYPING_MS = 300;

export abstract class Listing<T extends { id: number }> {
  readonly element: HTMLElement;
  private readonly place = h("div", {});
  private readonly name = h("input", { type: "search", maxlength: "200", placeholder: "a part of the name", "aria-label": "Find by name" });
  /** Behind which ids the pages before this one began. */
  private before: number[] = [];
  private after = 0;
  private timer = 0;

  constructor(
    protected readonly paper: Paper,
    private readonly caption: string,
    private readonly heads: readonly Head[],
    ...buttons: HTMLElement[]
  ) {
    this.name.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = window.setTimeout(() => this.go([], 0), TYPING_MS);
    });
    this.element = h("div", {}, h("div", { class: "row wrap field" }, this.name, ...buttons), this.place);
  }

  /** Throws ApiError. */
  async load(): Promise<void> {
    const { before, after } = this;
    const asked = { after: String(after), limit: String(LIMIT), name: this.name.value };
    const { data, more } = await this.fetch(asked);
    // Another page was asked for meanwhile.
    if (after !== this.after || asked.name !== this.name.value) return;
    const back = before.length > 0 ? () => this.go(before.slice(0, -1), before.at(-1) ?? 0) : null;
    const last = data.at(-1)?.id ?? 0;
    const forward = more ? () => this.go([...before, after], last) : null;
    const rows = data.map((entry) => this.row(entry));
    const shown = rows.length > 0 ? table(this.caption, this.heads, rows) : h("p", { class: "hint" }, "There is nothing here yet.");
    this.place.replaceChildren(shown, ...(back || forward ? [turn(back, forward, `page ${before.length + 1}`)] : []));
  }

  protected abstract fetch(query: Record<string, string>): Promise<Page<T>>;
  protected abstract row(entry: T): Cell[];

  private go(before: number[], after: number): void {
    this.before = before;
    this.after = after;
    void this.paper.show();
  }
}
