/** Things said beside the work: a banner while something is wrong, a toast for what just happened. */

import { byId, h, iconButton } from "./dom";

export interface Action {
  label: string;
  run: () => void;
}

/** A notice with a message and buttons; `tone` "error" stands out more. */
export function notice(tone: "error" | "info", text: string, ...actions: Action[]): HTMLElement {
  const buttons = actions.map(({ label, run }) => h("button", { type: "button", class: "quiet", onclick: run }, label));
  return h("div", { class: `notice ${tone}` }, h("span", {}, text), h("span", { class: "notice-actions" }, ...buttons));
}

/** Shows the one banner above the page, or none. An unchanged text is left alone, so it is not read out again. */
export function banner(element: HTMLElement | null): void {
  const place = byId("banners");
  if (place.textContent !== (element?.textContent ?? "")) place.replaceChildren(...(element ? [element] : []));
}

const TOAST_MS = 6000;

export function toast(text: string, action?: Action): void {
  const element = h("div", { class: "toast", role: "status" }, h("span", {}, text));
  if (action) {
    const run = (): void => {
      element.remove();
      action.run();
    };
    element.append(h("button", { type: "button", class: "quiet", onclick: run }, action.label));
  }
  element.append(iconButton("close", "Close", () => element.remove()));
  byId("toasts").replaceChildren(element);
  setTimeout(() => element.remove(), TOAST_MS);
}
