/** Accounts and their money. */

import { tried } from "./admin-keys";
import type { AccountCard, Page } from "./desk";
import { h } from "./dom";
import { Form, choice, input } from "./form";
import { Listing } from "./listing";
import type { Paper } from "./paper";
import type { Cell } from "./table";

const KINDS = { grant: "a grant: spent first, may end", top_up: "a top-up: paid for", adjustment: "an adjustment: may be negative" };

export class AccountList extends Listing<AccountCard> {
  constructor(paper: Paper) {
    super(paper, "Accounts", [{ label: "Account" }, { label: "Keys", number: true }, { label: "Balance" }, { label: "" }]);
  }

  protected fetch(query: Record<string, string>): Promise<Page<AccountCard>> {
    return this.paper.desk.accounts(query);
  }

  protected row(account: AccountCard): Cell[] {
    const balances = account.balances.map(({ currency, total, granted }) => h("div", {}, `${total} ${currency} (${granted} granted)`));
    const label = `Give money to ${account.name}`;
    const give = h("button", { type: "button", class: "chip", "aria-label": label, onclick: () => this.give(account) }, "Give money");
    return [h("span", { class: "name" }, account.name), String(account.keys), h("div", {}, ...(balances.length > 0 ? balances : ["nothing"])), give];
  }

  private give(account: AccountCard): void {
    const kind = choice("What it is", "", KINDS, "grant");
    const amount = input("Amount", "such as 10 or 0.50", { inputmode: "decimal", required: true });
    const currency = input("Currency", "three letters", { pattern: "[A-Z]{3}", required: true }, account.balances[0]?.currency ?? "USD");
    const expires = input("Ends on", "of a grant; empty: never", { type: "date" });
    const note = input("Note", "kept with it", { maxlength: "200" });
    new Form(`Money for ${account.name}`, [kind, amount, currency, expires, note], "Give", () =>
      tried(this.paper, () => this.paper.desk.move(account.id, {
        kind: kind.value,
        amount: amount.value,
        currency: currency.value,
        expires: expires.value === "" ? null : Date.parse(`${expires.value}T00:00Z`) / 1000,
        note: note.value,
      })));
  }
}
