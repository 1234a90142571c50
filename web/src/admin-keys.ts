/** Keys: listed, made (the secret is shown once), limited, revoked. */

import type { KeyCard, Limits, Page } from "./desk";
import { confirmDialog, openDialog } from "./dialogs";
import { copyButton, h } from "./dom";
import { day, grouped } from "./formats";
import { Form, choice, input } from "./form";
import { Listing } from "./listing";
import type { Paper } from "./paper";
import type { Cell } from "./table";

const HEADS = [
  { label: "Account" }, { label: "Key" }, { label: "Role" }, { label: "Models" }, { label: "Limits" },
  { label: "Made" }, { label: "State" }, { label: "" },
];

export class KeyList extends Listing<KeyCard> {
  constructor(paper: Paper) {
    const add = h("button", { type: "button", class: "primary", onclick: () => this.add() }, "New key");
    super(paper, "API keys", HEADS, add);
  }

  protected fetch(query: Record<string, string>): Promise<Page<KeyCard>> {
    return this.paper.desk.keys(query);
  }

  protected row(key: KeyCard): Cell[] {
    const button = (label: string, run: () => void): HTMLElement =>
      h("button", { type: "button", class: "chip", "aria-label": `${label} ${key.prefix} of ${key.name}`, onclick: run }, label);
    const actions = key.revoked ? [] : [button("Change", () => this.change(key)), button("Revoke", () => void this.revoke(key))];
    return [
      h("span", { class: "name" }, key.name),
      h("code", {}, `${key.prefix}…`),
      key.role,
      h("span", { class: "name" }, key.models === null ? "all" : key.models.join(", ") || "none"),
      describe(key.limits),
      h("span", { class: "when" }, day(key.created * 1000)),
      state(key, Date.now() / 1000),
      h("span", { class: "row" }, ...actions),
    ];
  }

  private add(): void {
    const name = input("Account", "is made if there is none of this name", { required: true, maxlength: "200" });
    const role = choice("Role", "administrators may use this page", { user: "user", admin: "admin" }, "user");
    const rest = new Terms(null);
    new Form("New key", [name, role, ...rest.fields], "Make the key", async () => {
      let made: KeyCard | undefined;
      const body = { name: name.value, role: role.value, ...rest.body() };
      const failed = await this.tried(async () => (made = await this.paper.desk.addKey(body)));
      if (made) reveal(made);
      return failed;
    });
  }

  private change(key: KeyCard): void {
    const rest = new Terms(key);
    new Form(`Key ${key.prefix}… of ${key.name}`, rest.fields, "Save", () => this.tried(() => this.paper.desk.changeKey(key.id, rest.body())));
  }

  private async revoke(key: KeyCard): Promise<void> {
    const text = `The key ${key.prefix}… of ${key.name} will be refused from now on, for good.`;
    if (await confirmDialog("Revoke this key?", text, "Revoke")) {
      if (await this.paper.attempt(() => this.paper.desk.revokeKey(key.id))) await this.paper.show();
    }
  }

  private tried(run: () => Promise<unknown>): Promise<string | null> {
    return tried(this.paper, run);
  }
}

/** Runs a change and shows the list anew; what the server refuses is for the form to say. */
export async function tried(paper: Paper, run: () => Promise<unknown>): Promise<string | null> {
  try {
    await run();
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
  void paper.show();
  return null;
}

/** The fields for what a key may: models, an end, limits. */
class Terms {
  private readonly models;
  private readonly expires;
  private readonly numbers;
  private readonly budget;
  private readonly currency;
  private readonly period;

  constructor(key: KeyCard | null) {
    const limits = key?.limits;
    const number = (label: string, value: number | null | undefined): ReturnType<typeof input> =>
      input(label, "empty: no limit", { inputmode: "numeric", pattern: "[0-9]*" }, value ? String(value) : "");
    this.models = input("Models", "names with commas between them; empty: all", {}, key?.models?.join(", ") ?? "");
    this.expires = input("Ends on", "empty: never; at 0:00 UTC", { type: "date" }, key?.expires ? day(key.expires * 1000) : "");
    this.numbers = {
      requests_per_minute: number("Requests a minute", limits?.requests_per_minute),
      tokens_per_minute: number("Tokens a minute", limits?.tokens_per_minute),
      concurrent: number("Requests at one time", limits?.concurrent),
    };
    this.budget = input("Budget", "such as 12.50; empty: none", { inputmode: "decimal" }, limits?.budget ?? "");
    this.currency = input("Currency of the budget", "three letters", { pattern: "[A-Z]{3}", required: true }, limits?.budget_currency ?? "USD");
    this.period = choice("The budget is for", "", { month: "a calendar month", total: "all time" }, limits?.budget_period ?? "month");
  }

  get fields(): ReturnType<typeof input>[] {
    return [this.models, this.expires, ...Object.values(this.numbers), this.budget, this.currency, this.period];
  }

  body(): Record<string, unknown> {
    const models = this.models.value.split(",").map((name) => name.trim()).filter((name) => name !== "");
    const numbers = Object.entries(this.numbers).map(([name, { value }]) => [name, value === "" ? null : Number(value)]);
    return {
      models: models.length > 0 ? models : null,
      expires: this.expires.value === "" ? null : Date.parse(`${this.expires.value}T00:00Z`) / 1000,
      limits: {
        ...Object.fromEntries(numbers),
        budget: this.budget.value || null,
        budget_currency: this.currency.value,
        budget_period: this.period.value,
      },
    };
  }
}

/** Shows a new key, which the server does not know afterwards. */
function reveal({ secret, name }: KeyCard): void {
  const code = h("code", { class: "secret", tabindex: "0" }, secret);
  openDialog("The new key", h("p", {}, `This is the key of ${name}. It is shown this once: keep it now.`),
    h("div", { class: "row" }, code, copyButton("Copy the key", () => secret)));
}

function describe({ requests_per_minute, tokens_per_minute, concurrent, budget, budget_currency, budget_period }: Limits): string {
  const parts = [
    requests_per_minute && `${grouped(requests_per_minute)} requests/min`,
    tokens_per_minute && `${grouped(tokens_per_minute)} tokens/min`,
    concurrent && `${concurrent} at one time`,
    budget && `${budget} ${budget_currency} ${budget_period === "month" ? "a month" : "in all"}`,
  ];
  return parts.filter(Boolean).join(", ") || "none";
}

/** `now` in seconds. */
function state({ revoked, expires }: KeyCard, now: number): string {
  if (revoked) return `revoked ${day(revoked * 1000)}`;
  if (expires) return `${expires <= now ? "ended" : "until"} ${day(expires * 1000)}`;
  return "in use";
}
