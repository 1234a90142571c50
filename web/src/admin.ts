/** The administrators' page: keys, accounts and what was used. */

import "./style/base.css";
import "./style/forms.css";
import "./style/thread.css";
import "./style/layout.css";
import "./style/paper.css";

import { AccountList } from "./admin-accounts";
import { KeyList } from "./admin-keys";
import { UsageList } from "./admin-usage";
import { byId } from "./dom";
import { Paper } from "./paper";

const PARTS = ["keys", "accounts", "usage"] as const;

const paper: Paper = new Paper(() => parts[chosen()].load());
const parts = { keys: new KeyList(paper), accounts: new AccountList(paper), usage: new UsageList(paper) };

function chosen(): (typeof PARTS)[number] {
  return PARTS.find((name) => `#${name}` === location.hash) ?? "keys";
}

function show(): void {
  for (const name of PARTS) {
    byId(name).hidden = name !== chosen();
    byId(`show-${name}`).setAttribute("aria-current", String(name === chosen()));
  }
  void paper.show();
}

for (const name of PARTS) byId(name).append(parts[name].element);
addEventListener("hashchange", show);
show();
