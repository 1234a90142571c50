/** The chat: the thread on show, the composer, and the answers being made (each goes on when another chat is opened). */

import type { ChatMessage } from "./api";
import type { App } from "./app";
import {
  type Conversation,
  type Message,
  append,
  branch,
  emptyConversation,
  isRunning,
  requestMessages,
  show,
  siblings,
  unfinished,
} from "./conversation";
import { copySources } from "./copying";
import { announce, byId, icon } from "./dom";
import { emptyState } from "./empty-state";
import { Follower } from "./follower";
import { Gauge, isFull } from "./gauge";
import { Generation, type Outcome, type Progress, sentence } from "./generation";
import type { Watcher } from "./history";
import { type Actions, type MessageView, type Place, autosize, messageView, onTouch, sends } from "./message-view";
import { toast } from "./notices";
import { ownValues, sampling, thinking } from "./settings";

/** While an answer grows it is saved this often, so that a reload loses little and other tabs see it grow. */
const SAVE_EVERY_MS = 1000;
/** PageUp and PageDown in the composer turn the thread by this share of what is in sight. */
const PAGE = 0.9;

export class Chat implements Actions, Watcher {
  conversation: Conversation = emptyConversation(Date.now());
  /** The answers that this tab makes, by conversation. */
  private readonly running = new Map<string, Generation>();
  private readonly views = new Map<string, MessageView>();
  private readonly box = byId<HTMLTextAreaElement>("composer-text");
  private readonly follower = new Follower(byId("scroller"), (following) => (byId("to-latest").hidden = following));
  private readonly gauge = new Gauge(() => this.newChat());

  constructor(
    private readonly app: App,
    /** The list of conversations or the one on show changed. */
    private readonly changed: () => void,
    private readonly openSettings: () => void,
  ) {
    this.listen();
    app.history.watcher = this;
    this.open(this.conversation);
  }

  isRunning(conversation: Conversation): boolean {
    return conversation.messages.some(isRunning);
  }

  open(conversation: Conversation): void {
    this.conversation = conversation;
    this.box.value = this.app.drafts.read(this.draftKey);
    this.resize();
    this.views.clear();
    this.render();
    this.follower.start();
    if (conversation.leaf === null) byId("scroller").scrollTop = 0;
    this.changed();
  }

  newChat(): void {
    this.open(emptyConversation(Date.now()));
    if (!onTouch()) this.box.focus();
  }

  /** Stops the answer of the conversation on show, in whichever tab it is made. */
  stop(): boolean {
    const running = this.isRunning(this.conversation);
    if (running) this.halt(this.conversation);
    return running;
  }

  halt(conversation: Conversation): void {
    const generation = this.running.get(conversation.id);
    if (generation) generation.stop();
    else if (this.isRunning(conversation)) this.app.history.stopElsewhere(conversation);
  }

  /** Leaves a conversation that was deleted, here or in another tab, with a way back. */
  gone(conversation: Conversation, said: string): void {
    this.halt(conversation);
    if (conversation === this.conversation) this.open(emptyConversation(Date.now()));
    this.changed();
    const undo = (): void => {
      void this.save(conversation).then(() => this.open(conversation));
    };
    toast(said, { label: "Undo", run: undo });
  }

  edit(message: Message, text: string): void {
    this.halt(this.conversation);
    void this.ask(this.conversation, message.parent, text);
  }

  regenerate(message: Message): void {
    const { conversation } = this;
    const asked = conversation.messages.find((other) => other.id === message.parent);
    if (!asked) return;
    this.halt(conversation);
    void this.reply(conversation, asked);
  }

  async resume(message: Message): Promise<void> {
    const { conversation } = this;
    const asked = conversation.messages.find((other) => other.id === message.parent);
    if (!asked || this.isRunning(conversation)) return;
    const reopened = await this.app.history.reopen(conversation, message);
    if (reopened) await this.make(conversation, asked, reopened);
  }

  startOver(message: Message): void {
    const asked = this.conversation.messages.find((other) => other.id === message.parent);
    this.newChat();
    this.box.value = asked?.text ?? "";
    this.typed();
  }

  shorten(message: Message): void {
    this.views.get(message.parent ?? "")?.startEdit?.();
  }

  settings(): void {
    this.openSettings();
  }

  turn(message: Message, step: number): void {
    const all = siblings(this.conversation, message);
    const next = all[all.findIndex(({ id }) => id === message.id) + step];
    if (!next) return;
    show(this.conversation, next.id);
    this.render();
    void this.save(this.conversation);
  }

  changedElsewhere(conversation: Conversation): void {
    if (conversation === this.conversation) this.render();
    this.changed();
  }

  removedElsewhere(conversation: Conversation): void {
    if (conversation === this.conversation) this.gone(conversation, "This conversation was deleted in another tab.");
    this.changed();
  }

  stopped(chat: string): void {
    this.running.get(chat)?.stop();
  }

  /** Called when the model on offer changes: the empty page says what it is good for. */
  modelChanged(): void {
    if (this.conversation.leaf === null) this.render();
    this.showGauge();
  }

  private listen(): void {
    this.box.addEventListener("input", () => this.typed());
    this.box.addEventListener("keydown", (event) => this.key(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.stop()) this.submit();
    });
    addEventListener("pagehide", () => this.running.forEach((generation) => generation.stop("left")));
    copySources(byId("thread"));
    byId("to-latest").append(icon("down"));
    byId("to-latest").addEventListener("click", () => this.follower.start());
  }

  private key(event: KeyboardEvent): void {
    const run = sends(event) ? () => this.submit() : this.composerKeys[event.key];
    const roomy = this.box.scrollHeight <= this.box.clientHeight + 1;
    if (!run || (event.key.startsWith("Page") && !roomy) || (event.key === "ArrowUp" && this.box.value !== "")) return;
    event.preventDefault();
    run();
  }

  private readonly composerKeys: Record<string, () => void> = {
    PageUp: () => this.follower.turn(-PAGE),
    PageDown: () => this.follower.turn(PAGE),
    ArrowUp: () => [...document.querySelectorAll<HTMLElement>("[data-edit]")].at(-1)?.click(),
  };

  private submit(): void {
    const text = this.box.value;
    if (!text.trim()) return;
    if (this.isRunning(this.conversation)) {
      announce(byId("busy").textContent ?? "");
      return;
    }
    this.box.value = "";
    this.typed();
    void this.ask(this.conversation, this.conversation.leaf, text);
  }

  private async ask(conversation: Conversation, parent: string | null, text: string): Promise<void> {
    const message = append(conversation, parent, { role: "user", text }, Date.now());
    await this.reply(conversation, message);
  }

  /** Adds an answer under `asked` and fills it until it ends. */
  private async reply(conversation: Conversation, asked: Message): Promise<void> {
    const message = append(conversation, asked.id, { role: "assistant", text: "" }, Date.now());
    await this.make(conversation, asked, message, asked);
  }

  /** Makes `message` grow from what it has; `fresh` messages are saved with it the first time. */
  private async make(conversation: Conversation, asked: Message, message: Message, ...fresh: Message[]): Promise<void> {
    const before = message.text || message.reasoning ? unfinished(message) : null;
    let savedAt = Date.now();
    const generation = new Generation((progress) => {
      fill(message, progress);
      this.refresh(conversation, message, progress.queued);
      if (Date.now() - savedAt < SAVE_EVERY_MS) return;
      savedAt = Date.now();
      void this.save(conversation, message);
    }, message.text, message.reasoning);
    this.running.set(conversation.id, generation);
    this.app.history.begin(message);
    this.render();
    this.follower.start();
    announce("Answering");
    void this.save(conversation, ...fresh, message);
    // A new chat is in the list, and has its address, from now on.
    this.changed();
    message.model = await this.app.modelName();
    const outcome = await generation.run("v1/chat/completions", this.body(conversation, asked, message.model, before), this.app.key.value);
    this.finish(conversation, message, outcome, generation);
  }

  private body(conversation: Conversation, asked: Message, model: string, before: ChatMessage | null): Record<string, unknown> {
    const { chat, system } = this.app.settings;
    const own = ownValues("chat", this.app.model?.advice ?? null);
    const messages = [...requestMessages(conversation, asked, system), ...(before ? [before] : [])];
    return { model, messages, ...sampling(chat, own), ...(this.app.model?.thinks === false ? {} : thinking(chat)) };
  }

  private finish(conversation: Conversation, message: Message, outcome: Outcome, generation: Generation): void {
    fill(message, outcome);
    message.end = outcome.end === "length" && isFull(message, this.app.model) ? "full" : outcome.end;
    if (outcome.error) message.error = sentence(outcome.error);
    if (outcome.error?.status === 401) this.app.askForKey(outcome.error.message);
    if (outcome.error && outcome.error.kind !== "refused") void this.app.connection.check();
    this.app.history.making.delete(message.id);
    if (this.running.get(conversation.id) === generation) this.running.delete(conversation.id);
    this.refresh(conversation, message, false);
    announce(message.error ?? `Answer complete. ${message.text.slice(0, 500)}`);
    // A conversation that was deleted meanwhile stays so.
    const saved = this.app.history.find(conversation.id) ? this.save(conversation, message) : Promise.resolve();
    void saved.then(() => this.app.history.ended(message));
  }

  private async save(conversation: Conversation, ...changed: Message[]): Promise<void> {
    try {
      await this.app.history.save(conversation, ...changed);
    } catch (error) {
      toast(`This conversation could not be saved in the browser: ${String(error)}`);
    }
    this.changed();
  }

  /** Shows a message's new state if its conversation is on show. */
  private refresh(conversation: Conversation, message: Message, queued: boolean): void {
    if (conversation !== this.conversation) return;
    this.views.get(message.id)?.update(message, { ...this.place(message), queued });
    this.showComposer();
    this.showGauge();
    this.follower.follow();
  }

  /** Shows the branch. Messages that are there already keep their elements, and an edit under way its box. */
  private render(): void {
    const path = branch(this.conversation);
    const shown = new Set(path.map(({ id }) => id));
    for (const id of this.views.keys()) if (!shown.has(id)) this.views.delete(id);
    for (const message of path) {
      const view = this.views.get(message.id);
      if (view) view.update(message, this.place(message));
      else this.views.set(message.id, messageView(message, this.place(message), this));
    }
    const elements = path.flatMap(({ id }) => this.views.get(id)?.element ?? []);
    const thread = byId("thread");
    elements.forEach((element, at) => {
      if (thread.children[at] !== element) thread.insertBefore(element, thread.children[at] ?? null);
    });
    while (thread.children.length > elements.length) thread.lastElementChild?.remove();
    byId("empty").hidden = path.length > 0;
    if (path.length === 0) byId("empty").replaceChildren(emptyState(this.app.model, (text) => this.start(text)));
    this.showComposer();
    this.showGauge();
    this.follower.follow();
  }

  private place(message: Message): Place {
    const all = siblings(this.conversation, message);
    const index = all.findIndex(({ id }) => id === message.id);
    return { index, count: all.length, elsewhere: isRunning(message) && !this.app.history.making.has(message.id) };
  }

  private start(text: string): void {
    this.box.value = text;
    this.submit();
  }

  private showGauge(): void {
    this.gauge.show(branch(this.conversation), this.app.model);
  }

  private showComposer(): void {
    const running = this.isRunning(this.conversation);
    const send = byId<HTMLButtonElement>("send");
    const name = running ? "Stop" : "Send";
    send.disabled = !running && this.box.value.trim() === "";
    this.showBusy(running);
    if (send.getAttribute("aria-label") === name && send.firstChild) return;
    send.setAttribute("aria-label", name);
    send.title = running ? "Stop (Esc)" : "Send (Enter)";
    send.replaceChildren(icon(running ? "stop" : "send"));
  }

  /** Says why a text that waits in the composer cannot be sent yet. */
  private showBusy(running: boolean): void {
    const elsewhere = running && !this.running.has(this.conversation.id);
    const busy = byId("busy");
    const words = elsewhere ? "Being answered in another tab: send when it is done, or stop it." : "Send when the answer is done, or stop it.";
    if (busy.textContent !== words) busy.textContent = words;
    busy.hidden = !elsewhere && (!running || this.box.value.trim() === "");
    byId("composer-hint").hidden = !busy.hidden;
  }

  private typed(): void {
    this.app.drafts.keep(this.draftKey, this.box.value);
    this.resize();
  }

  private resize(): void {
    autosize(this.box);
    this.showComposer();
  }

  /** A chat that was never sent has no id that would outlive the page. */
  private get draftKey(): string | null {
    return this.conversation.messages.length > 0 ? this.conversation.id : null;
  }
}

function fill(message: Message, { text, reasoning, calls, stats }: Progress): void {
  message.text = text;
  message.stats = stats;
  if (reasoning) message.reasoning = reasoning;
  if (calls.length > 0) message.calls = calls;
}
