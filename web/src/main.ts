/** Puts the page together. */

import "./style/base.css";
import "./style/layout.css";
import "./style/thread.css";
import "./style/forms.css";

import { App } from "./app";
import { Chat } from "./chat";
import { Complete } from "./complete";
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

  constructor(history: History) {
    this.app = new App(history, () => this.showConnection());
    this.chat = new Chat(this.app, () => this.sidebar?.render(), () => this.setMode("complete"));
    this.complete = new Complete(this.app, byId("complete"), () => this.openSettings());
    this.sidebar = new Sidebar(this.app, this.chat, () => {
      this.setMode("chat");
      this.showSidebar(false);
    });
    this.sidebar.render();
    this.buildHeader();
    document.addEventListener("keydown", (event) => this.shortcut(event));
    this.setMode(this.app.settings.mode ?? "chat", false);
    void this.app.connection.check();
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
    byId("scrim").addEventListener("click", () => this.showSidebar(false));
    for (const mode of ["chat", "complete"] as const) {
      byId(`mode-${mode}`).addEventListener("click", () => this.setMode(mode));
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
  }

  /** `chosen` by the user is remembered; otherwise the model's nature may still decide. */
  private setMode(mode: Mode, chosen = true): void {
    this.mode = mode;
    for (const each of ["chat", "complete"] as const) {
      byId(each).hidden = each !== mode;
      byId(`mode-${each}`).setAttribute("aria-pressed", String(each === mode));
    }
    document.body.dataset["mode"] = mode;
    this.complete.fit();
    // On a phone the focus would bring up the keyboard over the page.
    if (!onTouch()) byId(mode === "chat" ? "composer-text" : "prefix").focus();
    if (!chosen) return;
    this.app.settings.mode = mode;
    this.app.saveSettings();
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
    const { state, models, reason } = this.app.connection;
    const names = { connecting: "Connecting", online: "Connected", offline: "Server not reachable", refused: "Server refuses" };
    const dot = byId("status-dot");
    dot.dataset["state"] = state;
    dot.setAttribute("aria-label", names[state]);
    dot.title = names[state];
    const retry = { label: "Try now", run: () => void this.app.connection.check() };
    const settings = { label: "Settings", run: () => this.openSettings() };
    if (state === "offline") banner(notice("error", "The server cannot be reached. Trying again by itself.", retry));
    else if (state === "refused") banner(notice("error", `The server refuses to list its models: ${reason}`, settings, retry));
    else banner(null);
    const select = byId<HTMLSelectElement>("model");
    select.replaceChildren(...models.map(({ id }) => h("option", { value: id }, id)));
    select.disabled = models.length < 2;
    const { model, settings: chosen } = this.app;
    this.modelChanged();
    if (!model) return;
    select.value = model.id;
    select.title = model.context ? `${model.id}: ${model.context} tokens of context` : model.id;
    if (chosen.mode === null && !model.chats) this.setMode("complete", false);
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
        this.setMode("chat");
        this.chat.newChat();
      },
      ",": () => this.openSettings(),
      "/": shortcutsDialog,
    };
    return keys[event.key.toLowerCase()] ?? null;
  }
}

const history = await History.open();
new Page(history);
if (!history.lasting) toast("This browser does not let the page keep conversations: they are lost when it is closed.");
