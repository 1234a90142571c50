/** The chat: the thread on show, the composer, and the answers being made (each goes on when another chat is opened). */

import type { App } from "./app";
import {
  type Conversation,
  type Message,
  append,
  branch,
  dropLeaf,
  emptyConversation,
  requestMessages,
  show,
  siblings,
} from "./conversation";
import { announce, byId, h, icon } from "./dom";
import { CHAT_EXAMPLES } from "./examples";
import { Generation, type Outcome, type Progress, sentence } from "./generation";
import { type Actions, type MessageView, autosize, messageView, onTouch, sends } from "./message-view";
import { toast } from "./notices";
import { sampling, thinking } from "./settings";

/** While an answer grows it is saved this often, so that a reload loses little. */
const SAVE_EVERY_MS = 2000;
const NEAR_BOTTOM_PX = 80;

export class Chat implements Actions {
  conversation: Conversation = emptyConversation(Date.now());
  private readonly running = new Map<string, Generation>();
  private readonly views = new Map<string, MessageView>();
  private readonly box = byId<HTMLTextAreaElement>("composer-text");
  private readonly scroller = byId("scroller");
  private following = true;

  constructor(
    private readonly app: App,
    /** The list of conversations or the one on show changed. */
    private readonly changed: () => void,
    private readonly tryComplete: () => void,
  ) {
    this.listen();
    this.render();
  }

  isRunning(conversation: Conversation): boolean {
    return this.running.has(conversation.id);
  }

  open(conversation: Conversation): void {
    this.conversation = conversation;
    this.following = true;
    this.render();
    this.changed();
  }

  newChat(): void {
    this.open(emptyConversation(Date.now()));
    if (!onTouch()) this.box.focus();
  }

  stop(): boolean {
    const generation = this.running.get(this.conversation.id);
    generation?.stop();
    return generation !== undefined;
  }

  /** Stops a conversation's answer for good: it is replaced, or its conversation deleted. */
  forget(conversation: Conversation): void {
    this.running.get(conversation.id)?.stop();
    this.running.delete(conversation.id);
  }

  edit(message: Message, text: string): void {
    this.forget(this.conversation);
    void this.ask(this.conversation, message.parent, text);
  }

  regenerate(message: Message): void {
    const { conversation } = this;
    const asked = branch(conversation).find((other) => other.id === message.parent);
    if (!asked) return;
    this.forget(conversation);
    const isLeaf = !conversation.messages.some((other) => other.parent === message.id);
    if (isLeaf && message.text === "") dropLeaf(conversation, message);
    void this.reply(conversation, asked);
  }

  turn(message: Message, step: number): void {
    const all = siblings(this.conversation, message);
    const next = all[all.indexOf(message) + step];
    if (!next) return;
    show(this.conversation, next.id);
    this.render();
    void this.save(this.conversation);
  }

  /** Called when the model on offer changes: the empty page says what it is good for. */
  modelChanged(): void {
    if (this.conversation.leaf === null) this.render();
  }

  private listen(): void {
    this.box.addEventListener("input", () => this.resize());
    this.box.addEventListener("keydown", (event) => {
      if (sends(event)) {
        event.preventDefault();
        this.submit();
      } else if (event.key === "ArrowUp" && this.box.value === "") {
        event.preventDefault();
        [...document.querySelectorAll<HTMLElement>("[data-edit]")].at(-1)?.click();
      }
    });
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.stop()) this.submit();
    });
    this.scroller.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.scroller;
      this.following = scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM_PX;
      byId("to-latest").hidden = this.following;
    });
    byId("to-latest").append(icon("down"));
    byId("to-latest").addEventListener("click", () => this.follow(true));
  }

  private submit(): void {
    const text = this.box.value;
    if (!text.trim() || this.isRunning(this.conversation)) return;
    this.box.value = "";
    this.resize();
    void this.ask(this.conversation, this.conversation.leaf, text);
  }

  private async ask(conversation: Conversation, parent: string | null, text: string): Promise<void> {
    const message = append(conversation, parent, { role: "user", text }, Date.now());
    await this.reply(conversation, message);
  }

  /** Adds an answer under `asked` and fills it until it ends. */
  private async reply(conversation: Conversation, asked: Message): Promise<void> {
    const message = append(conversation, asked.id, { role: "assistant", text: "" }, Date.now());
    let savedAt = Date.now();
    const generation = new Generation((progress) => {
      fill(message, progress);
      this.refresh(conversation, message, progress.queued);
      if (Date.now() - savedAt < SAVE_EVERY_MS) return;
      savedAt = Date.now();
      void this.save(conversation);
    });
    this.running.set(conversation.id, generation);
    this.following = true;
    this.render();
    announce("Answering");
    void this.save(conversation);
    message.model = await this.app.modelName();
    const outcome = await generation.run("/v1/chat/completions", this.body(conversation, asked, message.model), this.app.settings.apiKey);
    this.finish(conversation, message, outcome, generation);
  }

  private body(conversation: Conversation, asked: Message, model: string): Record<string, unknown> {
    const { chat, system } = this.app.settings;
    return { model, messages: requestMessages(conversation, asked, system), ...sampling(chat), ...(this.app.model?.thinks === false ? {} : thinking(chat)) };
  }

  private finish(conversation: Conversation, message: Message, outcome: Outcome, generation: Generation): void {
    fill(message, outcome);
    message.end = outcome.end;
    if (outcome.error) message.error = sentence(outcome.error);
    if (outcome.error && outcome.error.kind !== "refused") void this.app.connection.check();
    if (this.running.get(conversation.id) !== generation) return;
    this.running.delete(conversation.id);
    this.refresh(conversation, message, false);
    announce(message.error ?? `Answer complete. ${message.text.slice(0, 500)}`);
    void this.save(conversation);
  }

  private async save(conversation: Conversation): Promise<void> {
    try {
      await this.app.history.save(conversation);
    } catch (error) {
      toast(`This conversation could not be saved in the browser: ${String(error)}`);
    }
    this.changed();
  }

  /** Shows a message's new state if its conversation is on show. */
  private refresh(conversation: Conversation, message: Message, queued: boolean): void {
    if (conversation !== this.conversation) return;
    this.views.get(message.id)?.update(message, queued);
    this.showComposer();
    this.follow(false);
  }

  private render(): void {
    const path = branch(this.conversation);
    this.views.clear();
    for (const message of path) {
      const all = siblings(this.conversation, message);
      this.views.set(message.id, messageView(message, { index: all.indexOf(message), count: all.length }, this));
    }
    byId("thread").replaceChildren(...[...this.views.values()].map((view) => view.element));
    byId("empty").hidden = path.length > 0;
    if (path.length === 0) byId("empty").replaceChildren(this.emptyState());
    this.showComposer();
    if (path.length > 0) this.follow(false);
    else this.scroller.scrollTop = 0;
  }

  private showComposer(): void {
    const running = this.isRunning(this.conversation);
    const send = byId<HTMLButtonElement>("send");
    const name = running ? "Stop" : "Send";
    send.disabled = !running && this.box.value.trim() === "";
    if (send.getAttribute("aria-label") === name && send.firstChild) return;
    send.setAttribute("aria-label", name);
    send.title = running ? "Stop (Esc)" : "Send (Enter)";
    send.replaceChildren(icon(running ? "stop" : "send"));
  }

  private resize(): void {
    autosize(this.box);
    this.showComposer();
  }

  private follow(force: boolean): void {
    if (force || this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  private emptyState(): HTMLElement {
    const start = (text: string): void => {
      this.box.value = text;
      this.resize();
      this.submit();
    };
    const cards = CHAT_EXAMPLES.map(({ title, text }) =>
      h("button", { type: "button", class: "card", onclick: () => start(text) }, h("b", {}, title), h("span", {}, text)),
    );
    const complete = h(
      "button",
      { type: "button", class: "card accent", onclick: this.tryComplete },
      h("b", {}, "Complete code instead"),
      h("span", {}, "Continue a text, or fill the gap between two pieces of code."),
    );
    const hint = this.app.model?.chats === false
      ? "This model was trained to continue code, not to chat: expect more from completing."
      : "Everything here is answered by your own server.";
    const head = [wellMark(), h("h2", {}, "Intelligence should flow like water"), h("p", { class: "hint" }, hint)];
    return h("div", { class: "empty-state" }, ...head, h("div", { class: "cards" }, ...cards, complete));
  }
}

function fill(message: Message, { text, reasoning, calls, stats }: Progress): void {
  message.text = text;
  message.stats = stats;
  if (reasoning) message.reasoning = reasoning;
  if (calls.length > 0) message.calls = calls;
}

function wellMark(): HTMLElement {
  const mark = h("div", { class: "well", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
  const logo = document.querySelector(".brand .logo")?.cloneNode(true);
  if (logo) mark.append(logo);
  return mark;
}
