/** What an empty chat shows: what the model is good for, and ways to begin. */

import type { Model } from "./api";
import { h } from "./dom";
import { CHAT_EXAMPLES } from "./examples";

/** The name under which the server offers its embedded model. */
const EMBEDDED = "deepwell";

export function emptyState(model: Model | null, start: (text: string) => void): HTMLElement {
  const cards = CHAT_EXAMPLES.map(({ title, text }) =>
    h("button", { type: "button", class: "card", onclick: () => start(text) }, h("b", {}, title), h("span", {}, text)),
  );
  const hint = nature(model) ?? h("p", { class: "hint" }, "Everything here is answered by your own server.");
  const head = [wellMark(), h("h2", {}, "Intelligence should flow like water"), hint];
  const offered = model?.chats === false ? null : h("div", { class: "cards" }, ...cards);
  return h("div", { class: "empty-state" }, ...head, offered);
}

/** A line on a model that is not one to chat with; null for one that is. */
export function nature(model: Model | null): HTMLElement | null {
  if (model?.id === EMBEDDED && !model.chats) {
    const words = "This is the embedded model, a toy of a few million parameters: it goes on with Python-like text and does not chat. A real one: ";
    const [serve, list] = ["deepwell serve SmolLM2-135M-Instruct", "deepwell models"].map((command) => h("code", {}, command));
    return h("p", { class: "hint nature" }, words, serve ?? null, ", about 105 MB; ", list ?? null, " lists names and what fits there.");
  }
  if (model?.chats !== false) return null;
  return h("p", { class: "hint nature" }, "This model was trained to continue text, not to chat: give it a beginning, and it goes on.");
}

function wellMark(): HTMLElement {
  const mark = h("div", { class: "well", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
  const logo = document.querySelector(".brand .logo")?.cloneNode(true);
  if (logo) mark.append(logo);
  return mark;
}
