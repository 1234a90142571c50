/** A dialog with fields, which stays open until the server has taken what they say. */

import { openDialog } from "./dialogs";
import { h } from "./dom";

export interface Input {
  element: HTMLElement;
  readonly value: string;
}

let count = 0;

export function input(label: string, help: string, attributes: Record<string, string | boolean> = {}, value = ""): Input {
  const id = `field-${++count}`;
  const box = h("input", { type: "text", autocomplete: "off", ...attributes, id, "aria-describedby": `${id}-help` });
  box.value = value;
  return field(id, label, help, box);
}

export function choice(label: string, help: string, options: Record<string, string>, value: string): Input {
  const id = `field-${++count}`;
  const box = h("select", { id, "aria-describedby": `${id}-help` },
    ...Object.entries(options).map(([name, words]) => h("option", { value: name }, words)));
  box.value = value;
  return field(id, label, help, box);
}

function field(id: string, label: string, help: string, box: HTMLInputElement | HTMLSelectElement): Input {
  const element = h("div", { class: "field" }, h("label", { for: id }, label), box, h("span", { class: "hint", id: `${id}-help` }, help));
  return {
    element,
    get value() {
      return box.value.trim();
    },
  };
}

export class Form {
  /** `send` returns what was wrong, or null; then the dialog closes. */
  constructor(title: string, fields: readonly Input[], verb: string, send: () => Promise<string | null>) {
    const wrong = h("p", { class: "field-error", role: "alert" });
    const button = h("button", { type: "submit", class: "primary" }, verb);
    const form = h("form", { class: "settings" }, h("div", { class: "fields" }, ...fields.map(({ element }) => element)), wrong,
      h("div", { class: "row end" }, button));
    const dialog = openDialog(title, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      button.disabled = true;
      void send().then((said) => {
        button.disabled = false;
        wrong.textContent = said ?? "";
        if (said === null) dialog.close();
      });
    });
    form.querySelector("input")?.focus();
  }
}
