/** The settings, checked while they are typed and remembered as soon as they are right. */

import { balances } from "./api";
import type { App } from "./app";
import { openDialog } from "./dialogs";
import { h } from "./dom";
import { keyFields } from "./key";
import { DEFAULTS, FIELDS, type Field, type Mode, ownValues, problem } from "./settings";

export function settingsDialog(app: App, mode: Mode): void {
  const { settings } = app;
  const content = h("div", { class: "settings" });
  const build = (): void => {
    content.replaceChildren(
      ...(mode === "chat" ? [systemBox(app), app.model?.thinks === false ? null : thinkingBox(app)].filter((box) => box !== null) : []),
      h("h3", {}, mode === "chat" ? "Sampling in chats" : "Sampling in completions"),
      h("p", { class: "hint" }, "What you leave empty is as its field says."),
      h("div", { class: "fields" }, ...FIELDS.filter((field) => !field.more).map((field) => input(app, mode, field))),
      h("details", {}, h("summary", {}, "More"),
        h("div", { class: "fields" }, ...FIELDS.filter((field) => field.more).map((field) => input(app, mode, field)))),
      h("h3", {}, "Server"),
      keyBox(app),
      h("div", { class: "row end" }, h("button", { type: "button", class: "quiet", onclick: reset }, "Restore defaults")),
    );
  };
  const reset = (): void => {
    settings[mode] = { ...DEFAULTS[mode] };
    if (mode === "chat") settings.system = DEFAULTS.system;
    app.saveSettings();
    build();
  };
  build();
  openDialog("Settings", content);
}

function input(app: App, mode: Mode, field: Field): HTMLElement {
  const id = `setting-${field.key}`;
  const wrong = h("span", { class: "field-error", id: `${id}-error`, role: "alert" });
  const attributes = { id, "aria-describedby": `${id}-help ${id}-error`, placeholder: unsaid(app, mode, field), autocomplete: "off" };
  const box =
    field.kind === "lines"
      ? h("textarea", { ...attributes, rows: "2", class: "code" })
      : h("input", { ...attributes, type: "text", inputmode: field.kind === "integer" ? "numeric" : "decimal" });
  const typed = app.settings[mode];
  box.value = typed[field.key] ?? "";
  box.addEventListener("input", () => {
    const said = problem(field, box.value);
    wrong.textContent = said ?? "";
    box.setAttribute("aria-invalid", String(said !== null));
    if (said !== null) return;
    typed[field.key] = box.value;
    app.saveSettings();
  });
  const label = h("label", { for: id }, field.label);
  return h("div", { class: "field" }, label, box, h("span", { class: "hint", id: `${id}-help` }, field.help), wrong);
}

/** What holds for a field that is left empty. */
function unsaid({ model }: App, mode: Mode, { key }: Field): string {
  const own = ownValues(mode, model?.advice ?? null)[key];
  if (own !== undefined) return `the page's own: ${own}`;
  const advised = model?.advice?.[key];
  return advised === undefined ? "server's choice" : `the model's advice: ${advised}`;
}

function systemBox(app: App): HTMLElement {
  const box = h("textarea", { id: "setting-system", rows: "3", placeholder: "How the model should behave, in every chat." });
  box.value = app.settings.system;
  box.addEventListener("input", () => {
    app.settings.system = box.value;
    app.saveSettings();
  });
  return h("div", { class: "field" }, h("label", { for: "setting-system" }, "System prompt"), box);
}

function thinkingBox(app: App): HTMLElement {
  const options = { "": "server's choice", on: "on", off: "off" };
  const box = h("select", { id: "setting-thinking" }, ...Object.entries(options).map(([value, label]) => h("option", { value }, label)));
  box.value = app.settings.chat["thinking"] ?? "";
  box.addEventListener("change", () => {
    app.settings.chat["thinking"] = box.value;
    app.saveSettings();
  });
  return h("div", { class: "field" }, h("label", { for: "setting-thinking" }, "Thinking before an answer"), box);
}

/** The key, and what its account has. */
function keyBox(app: App): HTMLElement {
  const owned = h("p", { class: "hint", id: "balance" });
  const ask = async (): Promise<void> => {
    const found = await balances(app.key.value);
    owned.textContent = found.length > 0 ? `Balance: ${found.join(", ")}` : "";
  };
  const changed = (): void => {
    void app.connection.check();
    void ask();
  };
  void ask();
  const onsubmit = (event: Event): void => {
    event.preventDefault();
    (document.activeElement as HTMLElement | null)?.blur();
  };
  return h("form", { class: "field", onsubmit }, ...keyFields(app.key, changed), owned,
    h("p", { class: "hint" }, h("a", { class: "link", href: "books" }, "Books"), " · ", h("a", { class: "link", href: "admin" }, "Administration")));
}
