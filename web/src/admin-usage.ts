/** What was used, by key, account, model or day. */

import type { Json } from "./api";
import { h } from "./dom";
import { csv, grouped } from "./formats";
import { type Paper, download } from "./paper";
import { table, turn } from "./table";

const LIMIT = 50;
/** By what it is summed, and the columns that name a group. */
const GROUPS: Record<string, { label: string; columns: readonly string[] }> = {
  "account,key": { label: "key", columns: ["account", "prefix"] },
  account: { label: "account", columns: ["account"] },
  model: { label: "model", columns: ["model"] },
  day: { label: "day", columns: ["day"] },
  kind: { label: "kind of request", columns: ["kind"] },
};
const DAYS: Record<string, string> = { "1": "a day", "7": "7 days", "30": "30 days", "366": "a year", "": "all time" };
const NUMBERS = ["requests", "hit", "miss", "output", "reasoning"] as const;
const LABELS: Record<string, string> = { prefix: "key", hit: "in, from the cache", miss: "in, computed", output: "out", reasoning: "thoughts", from_granted: "from grants" };

export class UsageList {
  readonly element: HTMLElement;
  private readonly place = h("div", {});
  private readonly by = options("Summed by", Object.fromEntries(Object.entries(GROUPS).map(([value, { label }]) => [value, label])));
  private readonly days = options("Of the last", DAYS);
  private offset = 0;
  private shown: string[][] = [];

  constructor(private readonly paper: Paper) {
    this.days.box.value = "30";
    for (const { box } of [this.by, this.days]) box.addEventListener("change", () => this.go(0));
    const save = h("button", { type: "button", class: "quiet", onclick: () => download("usage.csv", csv(this.shown)) }, "CSV of this page");
    this.element = h("div", {}, h("div", { class: "row wrap" }, this.by.element, this.days.element, save), this.place);
  }

  /** Throws ApiError. */
  async load(): Promise<void> {
    const { offset } = this;
    const by = this.by.box.value;
    const days = Number(this.days.box.value);
    const from: Record<string, string> = days ? { from: String(Math.floor(Date.now() / 1000) - days * 86_400) } : {};
    const { data, more } = await this.paper.desk.usage({ by, offset: String(offset), limit: String(LIMIT), ...from });
    if (offset !== this.offset || by !== this.by.box.value) return;
    const columns = [...(GROUPS[by]?.columns ?? []), ...NUMBERS, "cost", "from_granted", "currency"];
    const heads = columns.map((name) => ({ label: LABELS[name] ?? name, ...(name in NUMERIC ? { number: true as const } : {}) }));
    const rows = data.map((row) => columns.map((name) => cell(row, name)));
    this.shown = [columns, ...data.map((row) => columns.map((name) => String(row[name] ?? "")))];
    const back = offset > 0 ? () => this.go(offset - LIMIT) : null;
    const forward = more ? () => this.go(offset + LIMIT) : null;
    const list = rows.length > 0 ? table("Usage", heads, rows) : h("p", { class: "hint" }, "Nothing was used.");
    this.place.replaceChildren(list, ...(back || forward ? [turn(back, forward, `from row ${offset + 1}`)] : []));
  }

  private go(offset: number): void {
    this.offset = Math.max(0, offset);
    void this.paper.show();
  }
}

const NUMERIC = Object.fromEntries([...NUMBERS, "cost", "from_granted"].map((name) => [name, true]));

function cell(row: Json, name: string): string {
  const value = row[name];
  if (typeof value === "number") return grouped(value);
  if (name === "account" && (value === undefined || value === "")) return "without a key";
  if (name === "day" && typeof value === "string") return value.slice(0, 10);
  return typeof value === "string" ? value : "–";
}

function options(label: string, values: Record<string, string>): { element: HTMLElement; box: HTMLSelectElement } {
  const box = h("select", {}, ...Object.entries(values).map(([value, words]) => h("option", { value }, words)));
  return { element: h("label", { class: "choice" }, `${label} `, box), box };
}
