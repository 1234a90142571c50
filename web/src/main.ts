/** Puts the page together. */

import "./style/base.css";
import "./style/layout.css";
import "./style/thread.css";
import "./style/forms.css";

import { type Place, readAddress, writeAddress } from "./address";
import { App } from "./app";
import { Chat } from "./chat";
import { Complete } from "./complete";
import type { Conversation } from "./conversation";
import { shortcutsDialog } from "./dialogs";
import { byId, h, iconButton } from "./dom";
import { History } from "./history";
import { onTouch } from "./message-view";
import { banner, notice, toast } from "./notices";
import type { Mode } from "./settings";
import { settingsDialog } from "./settings-dialog";
import { Sidebar } from "./sidebar";
import { themeButton } from "./theme";

class Page {
  private readonly app: App;
  private readonly chat: Chat;
  private readonly complete: Complete;
  private readonly sidebar: Sidebar;
  private mode: Mode = "chat";
  /** What an address that says nothing shows. */
  private bare: Place = { mode: "chat", chat: null };
  /** The conversation whose address was last kept. */
  private addressed: Conversation | null = null;
  /** Whether a key was asked for since the server last took one. */
  private asked = false;
  /** False while an address is being followed. */
  private ready = false;

  constructor(history: History) {
    this.app = new App(history, () => this.showConnection());
    this.chat = new Chat(this.app, () => this.chatChanged(), () => this.openSettings());
    this.complete = new Complete(this.app, byId("complete"), () => this.openSettings());
    this.sidebar = new Sidebar(this.app, this.chat, () => {
      this.choose("chat");
      this.showSidebar(false);
    });
    this.buildHeader();
    document.addEventListener("keydown", (event) => this.shortcut(event));
    addEventListener("popstate", () => this.visit());
    this.visit();
    void this.app.connection.check();
  }

  /** Shows what the address says; one that says nothing leaves the choice to the settings and the model. */
  private visit(): void {
    const place = readAddress(location.hash) ?? { mode: this.usualMode(), chat: null };
    this.ready = false;
    this.setMode(place.mode);
    if (place.mode === "chat" && place.chat !== this.shownChat) {
      const found = place.chat === null ? null : this.app.history.find(place.chat);
      if (found) this.chat.open(found);
      else this.chat.newChat();
      if (place.chat && !found) toast("This chat is not in this browser: it was deleted, or is kept in another one.");
    }
    if (readAddress(location.hash) === null) this.bare = this.place;
    this.ready = true;
    this.addressed = this.chat.conversation;
    this.sidebar.render();
    this.keepAddress("replace");
  }

  /** What is on show. A chat has an address once there is something in it. */
  private get place(): Place {
    return this.mode === "complete" ? { mode: "complete" } : { mode: "chat", chat: this.shownChat };
  }

  private get shownChat(): string | null {
    const { messages, id } = this.chat.conversation;
    return messages.length > 0 ? id : null;
  }

  private usualMode(): Mode {
    const { model, settings } = this.app;
    return model?.chats === false ? "complete" : (settings.mode ?? "chat");
  }

  private chatChanged(): void {
    if (!this.ready) return;
    this.sidebar.render();
    // A new chat gets its address with its first message; a deleted one loses it.
    const { conversation } = this.chat;
    const before = this.addressed;
    const gone = before !== null && before.messages.length > 0 && this.app.history.find(before.id) === null;
    const how = conversation === before || gone ? "replace" : "push";
    this.addressed = conversation;
    this.keepAddress(how);
  }

  /** Gives what is on show its address. A bare one is named first, so that "Back" finds what it showed. */
  private keepAddress(how: "push" | "replace"): void {
    const { title } = this.chat.conversation;
    document.title = this.mode === "chat" && this.shownChat ? `${title} · Deepwell` : "Deepwell";
    const named = readAddress(location.hash);
    const [before, now] = [writeAddress(named ?? this.bare), writeAddress(this.place)];
    if (before === now) return;
    if (!named) window.history.replaceState(null, "", before);
    if (how === "push") window.history.pushState(null, "", now);
    else window.history.replaceState(null, "", now);
  }

  private buildHeader(): void {
    const theme = iconButton("auto", "Theme", () => undefined);
    themeButton(theme);
    byId("header-left").append(iconButton("menu", "Conversations", () => this.showSidebar()));
    byId("header-right").append(
      iconButton("keys", "Keyboard shortcuts", shortcutsDialog),
      theme,
      iconButton("sliders", "Settings", () => this.openSettings()),
    );
    document.querySelector(".skip")?.addEventListener("click", (event) => {
      // The address is for what is on show.
      event.preventDefault();
      byId(this.mode === "chat" ? "composer-text" : "prefix").focus();
    });
    byId("scrim").addEventListener("click", () => this.showSidebar(false));
    for (const mode of ["chat", "complete"] as const) {
      byId(`mode-${mode}`).addEventListener("click", () => this.choose(mode));
    }
    byId("model").addEventListener("change", (event) => {
      this.app.settings.model = (event.target as HTMLSelectElement).value;
      this.app.saveSettings();
      this.modelChanged();
    });
  }

  private modelChanged(): void {
    this.chat.modelChanged();
    this.complete.modelChanged();
    this.offer();
    if (this.app.model?.chats !== false || this.mode === "complete" || this.shownChat) return;
    this.setMode("complete");
    if (readAddress(location.hash) === null) this.bare = this.place;
    this.keepAddress("replace");
  }

  private setMode(mode: Mode): void {
    this.mode = mode;
    for (const each of ["chat", "complete"] as const) {
      byId(each).hidden = each !== mode;
      byId(`mode-${each}`).setAttribute("aria-pressed", String(each === mode));
    }
    document.body.dataset["mode"] = mode;
    this.complete.fit();
    this.offer();
    // On a phone the focus would bring up the keyboard over the page.
    if (!onTouch()) byId(mode === "chat" ? "composer-text" : "prefix").focus();
  }

  /** Shows and remembers the mode that the user chose. */
  private choose(mode: Mode): void {
    this.setMode(mode);
    this.keepAddress("push");
    this.app.settings.mode = mode;
    this.app.saveSettings();
  }

  /** Offers what the model can do. A chat that was opened stays readable whatever the model, with a way back. */
  private offer(): void {
    const chats = this.app.model?.chats !== false;
    byId("modes").hidden = !chats && this.mode === "complete";
    byId("new-chat").hidden = !chats;
  }

  private openSettings(): void {
    settingsDialog(this.app, this.mode);
  }

  /** On a wide window the sidebar is pushed aside; on a narrow one it lies over the page. */
  private showSidebar(open?: boolean): void {
    const narrow = matchMedia("(max-width: 800px)").matches;
    const name = narrow ? "sidebar-open" : "sidebar-closed";
    if (open === undefined) document.body.classList.toggle(name);
    else if (narrow) document.body.classList.toggle(name, open);
    byId("scrim").hidden = !document.body.classList.contains("sidebar-open");
  }

  private showConnection(): void {
    const { state, models, reason, status } = this.app.connection;
    const names = { connecting: "Connecting", online: "Connected", offline: "Server not reachable", refused: "Server refuses" };
    const dot = byId("status-dot");
    dot.dataset["state"] = state;
    dot.setAttribute("aria-label", names[state]);
    dot.title = names[state];
    const retry = { label: "Try now", run: () => void this.app.connection.check() };
    const settings = { label: "Settings", run: () => this.openSettings() };
    if (state === "online") this.asked = false;
    else if (status === 401 && !this.asked) {
      this.asked = true;
      this.app.askForKey(reason);
    }
    if (state === "offline") banner(notice("error", "The server cannot be reached. Trying again by itself.", retry));
    else if (state === "refused") banner(notice("error", `The server refuses to list its models: ${reason}`, settings, retry));
    else banner(null);
    const select = byId<HTMLSelectElement>("model");
    select.replaceChildren(...models.map(({ id }) => h("option", { value: id }, id)));
    select.disabled = models.length < 2;
    this.modelChanged();
    const { model } = this.app;
    if (!model) return;
    select.value = model.id;
    select.title = model.context ? `${model.id}: ${model.context} tokens of context` : model.id;
  }

  private shortcut(event: KeyboardEvent): void {
    const dialog = document.querySelector("dialog[open]") !== null;
    if (event.key === "Escape" && !dialog) {
      const stopped = this.mode === "chat" ? this.chat.stop() : this.complete.stop();
      if (!stopped) this.showSidebar(false);
      return;
    }
    const run = event.ctrlKey || event.metaKey ? this.controlKey(event) : null;
    if (!run || dialog) return;
    event.preventDefault();
    run();
  }

  private controlKey(event: KeyboardEvent): (() => void) | null {
    if (event.key === "Enter" && this.mode === "complete") {
      return () => (event.shiftKey ? this.complete.accept() : this.complete.toggle());
    }
    const keys: Record<string, () => void> = {
      k: () => {
        if (this.app.model?.chats === false) return;
        this.chat.newChat();
        this.choose("chat");
      },
      ",": () => this.openSettings(),
      "/": shortcutsDialog,
    };
    return keys[event.key.toLowerCase()] ?? null;
  }
}

const say = (text: string): void => banner(notice("error", text));
const history = await History.open(
  () => say("Another tab shows an older version of this page: reload or close it, and the conversations appear here."),
  () => say("A newer version of this page is open in another tab: reload this one."),
);
banner(null);
new Page(history);
if (!history.lasting) toast("This browser does not let the page keep conversations: they are lost when it is closed.");
