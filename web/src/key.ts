/** The API key of this browser: kept for the tab, or for good where the user says so; sent in a header and never in an address. */

import { openDialog } from "./dialogs";
import { h } from "./dom";
import { type Store, localStorageOrNothing, sessionStorageOrNothing } from "./storage";

const STORE = "deepwell.key";
/** Where it was kept, among the settings, before it had a place of its own. */
const OLD_STORE = "deepwell.settings";

export class Key {
  constructor(
    private readonly tab: Store = sessionStorageOrNothing(),
    private readonly browser: Store = localStorageOrNothing(),
  ) {
    this.moveOld();
  }

  /** Empty: none. */
  get value(): string {
    return this.tab.getItem(STORE) ?? this.browser.getItem(STORE) ?? "";
  }

  get remembered(): boolean {
    return this.browser.getItem(STORE) !== null;
  }

  /** Takes the place of the key before, wherever that was kept. */
  keep(value: string, remember: boolean): void {
    this.tab.removeItem(STORE);
    this.browser.removeItem(STORE);
    if (value === "") return;
    try {
      (remember ? this.browser : this.tab).setItem(STORE, value);
    } catch {
      // A full storage: the key is asked for again.
    }
  }

  private moveOld(): void {
    try {
      const { apiKey, ...rest } = JSON.parse(this.browser.getItem(OLD_STORE) ?? "{}") as { apiKey?: unknown };
      if (apiKey === undefined) return;
      this.browser.setItem(OLD_STORE, JSON.stringify(rest));
      if (typeof apiKey === "string" && apiKey !== "" && this.value === "") this.keep(apiKey, true);
    } catch {
      // What cannot be read holds no key.
    }
  }
}

/** A box for the key and one for whether it is remembered, which keep what they say. `changed` is told of each change. */
export function keyFields(key: Key, changed: () => void): HTMLElement[] {
  const box = h("input", { id: "setting-key", type: "password", autocomplete: "off", spellcheck: "false", placeholder: "sk-…" });
  const remember = h("input", { id: "setting-remember", type: "checkbox" });
  box.value = key.value;
  remember.checked = key.remembered;
  const keep = (): void => {
    key.keep(box.value.trim(), remember.checked);
    changed();
  };
  box.addEventListener("change", keep);
  remember.addEventListener("change", keep);
  return [
    h("label", { for: "setting-key" }, "API key"),
    box,
    h("label", { class: "check", for: "setting-remember" }, remember, "Remember it in this browser"),
    h("span", { class: "hint" }, "Sent only to this server. Without this it is forgotten when the tab is closed."),
  ];
}

/** Asks for a key, once at a time, and tells when one was given. `why` is what the server said. */
export function askForKey(key: Key, why: string, given: () => void): void {
  if (document.querySelector("dialog[open]")) return;
  const before = key.value;
  const form = h("form", { class: "field key-form" }, h("p", {}, why), ...keyFields(key, () => undefined),
    h("div", { class: "row end" }, h("button", { type: "submit", class: "primary" }, "Use this key")));
  const dialog = openDialog("API key", form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
  });
  dialog.addEventListener("close", () => {
    if (key.value !== "" && key.value !== before) given();
  });
  form.querySelector("input")?.focus();
}
