/** Dialogs: a question before something is lost, and the list of shortcuts. */

import { h, iconButton } from "./dom";

/** Opens a modal dialog with a title and a close button, and removes it when closed. */
export function openDialog(title: string, ...content: Node[]): HTMLDialogElement {
  const dialog = h("dialog", { "aria-label": title });
  const head = h("div", { class: "dialog-head" }, h("h2", {}, title), iconButton("close", "Close", () => dialog.close()));
  dialog.append(head, ...content);
  dialog.addEventListener("close", () => dialog.remove());
  // A click on the backdrop hits the dialog itself; clicks inside hit its children.
  dialog.addEventListener("mousedown", (event) => (event.target === dialog ? dialog.close() : undefined));
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

export function confirmDialog(title: string, text: string, verb: string): Promise<boolean> {
  return new Promise((resolve) => {
    let agreed = false;
    const yes = (): void => {
      agreed = true;
      dialog.close();
    };
    const buttons = h(
      "div",
      { class: "row end" },
      h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel"),
      h("button", { type: "button", class: "danger", onclick: yes }, verb),
    );
    const dialog = openDialog(title, h("p", {}, text), buttons);
    dialog.addEventListener("close", () => resolve(agreed));
  });
}

const SHORTCUTS: readonly (readonly [string, string])[] = [
  ["Enter", "Send the message"],
  ["Shift+Enter", "New line"],
  ["Esc", "Stop the answer"],
  ["Ctrl+K", "New chat"],
  ["↑ in an empty box", "Edit the last message"],
  ["Ctrl+Enter", "Complete (in the Complete mode)"],
  ["Ctrl+Shift+Enter", "Accept the completion"],
  ["Ctrl+,", "Settings"],
  ["Ctrl+/", "This list"],
];

export function shortcutsDialog(): void {
  const rows = SHORTCUTS.map(([keys, action]) => {
    const parts = keys.split("+").flatMap((key, at) => (at ? ["+", h("kbd", {}, key)] : [h("kbd", {}, key)]));
    return h("div", { class: "shortcut" }, h("dt", {}, ...parts), h("dd", {}, action));
  });
  openDialog("Keyboard shortcuts", h("dl", { class: "shortcuts" }, ...rows));
}
