/** The list of conversations: open, rename, delete (with undo), delete all, export, import. */

import type { App } from "./app";
import type { Chat } from "./chat";
import type { Conversation } from "./conversation";
import { confirmDialog } from "./dialogs";
import { writeExport } from "./exports";
import { byId, h, icon, iconButton } from "./dom";
import { toast } from "./notices";

export class Sidebar {
  /** What the list shows. */
  private shown = "";

  constructor(
    private readonly app: App,
    private readonly chat: Chat,
    /** A chat was chosen. */
    private readonly opened: () => void,
  ) {
    const start = byId("new-chat");
    start.append(icon("plus"), "New chat", h("kbd", {}, "Ctrl+K"));
    start.addEventListener("click", () => {
      chat.newChat();
      opened();
    });
    byId("history-tools").append(
      iconButton("download", "Export conversations", () => this.export()),
      iconButton("upload", "Import conversations", () => this.import()),
      iconButton("remove", "Delete all conversations", () => void this.clear()),
    );
  }

  /** Shows the list as it is now; it stays while nothing in it changed, or a title is being typed. */
  render(): void {
    const { conversations } = this.app.history;
    const list = byId("conversations");
    const rows = conversations.map((each) => [each.id, each.title, each === this.chat.conversation, this.chat.isRunning(each)]);
    const state = JSON.stringify(rows);
    if (list.querySelector("input") || state === this.shown) return;
    this.shown = state;
    list.replaceChildren(...conversations.map((conversation) => this.row(conversation)));
    byId("no-conversations").hidden = conversations.length > 0;
  }

  private row(conversation: Conversation): HTMLElement {
    const current = conversation === this.chat.conversation;
    const open = (): void => {
      this.chat.open(conversation);
      this.opened();
    };
    const title = h("button", { type: "button", class: "title", "aria-current": current && "page", title: conversation.title, onclick: open }, conversation.title);
    if (this.chat.isRunning(conversation)) title.prepend(h("span", { class: "busy", "aria-label": "answering", role: "img" }));
    const item = h("li", { class: current ? "current" : "" }, title);
    item.append(
      iconButton("edit", `Rename ${conversation.title}`, () => this.rename(conversation, item)),
      iconButton("remove", `Delete ${conversation.title}`, () => void this.remove(conversation)),
    );
    return item;
  }

  private rename(conversation: Conversation, item: HTMLElement): void {
    const box = h("input", { type: "text", "aria-label": "New title", maxlength: "200" });
    box.value = conversation.title;
    let keep = true;
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.stopPropagation();
      keep = event.key === "Enter";
      box.blur();
    });
    box.addEventListener("blur", () => {
      const title = box.value.trim();
      if (keep && title && title !== conversation.title) {
        void this.app.history.rename(conversation, title);
      }
      box.remove();
      this.shown = "";
      this.render();
    });
    item.replaceChildren(box);
    box.select();
  }

  private async remove(conversation: Conversation): Promise<void> {
    this.chat.halt(conversation);
    await this.app.history.remove(conversation);
    this.chat.gone(conversation, "Conversation deleted.");
  }

  private async clear(): Promise<void> {
    const { conversations } = this.app.history;
    if (conversations.length === 0) return;
    const text = `All ${conversations.length} conversations in this browser will be gone. This cannot be undone.`;
    if (!(await confirmDialog("Delete all conversations?", text, "Delete all"))) return;
    for (const conversation of conversations) this.chat.halt(conversation);
    await this.app.history.clear();
    this.chat.newChat();
    this.render();
  }

  private export(): void {
    const url = URL.createObjectURL(new Blob([writeExport(this.app.history.conversations)], { type: "application/json" }));
    const link = h("a", { href: url, download: "deepwell-conversations.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  private import(): void {
    const picker = h("input", { type: "file", accept: "application/json" });
    picker.addEventListener("change", () => {
      void picker.files?.[0]
        ?.text()
        .then((json) => this.app.history.import(json))
        .then((count) => toast(`${count} ${count === 1 ? "conversation" : "conversations"} imported.`))
        .catch((error: unknown) => toast(error instanceof Error ? error.message : String(error)))
        .finally(() => this.render());
    });
    picker.click();
  }
}
