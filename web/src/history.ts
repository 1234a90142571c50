/** The conversations of this browser, in step with its database and with the other tabs. */

import { type Conversation, type Message, isRunning, merge } from "./conversation";
import { Database } from "./database";
import { readExport } from "./exports";
import { Tabs } from "./tabs";

/** Hears what other tabs did. */
export interface Watcher {
  changedElsewhere(conversation: Conversation): void;
  removedElsewhere(conversation: Conversation): void;
  /** Another tab wants the answer that is made here to stop. */
  stopped(chat: string): void;
}

/** How often the makers of answers in other tabs are asked whether they still are. */
const WATCH_MS = 2000;

export class History {
  /** Newest first. */
  readonly conversations: Conversation[] = [];
  /** Ids of the answers that this tab makes. */
  readonly making = new Set<string>();
  watcher: Watcher | null = null;
  private watching = false;
  private begun: Promise<unknown> = Promise.resolve();
  private readonly tabs = new Tabs({
    saved: (chat) => void this.read(chat),
    removed: (chat) => this.forget(chat),
    stop: (chat) => this.watcher?.stopped(chat),
  });

  private constructor(private readonly database: Database | null) {}

  /** Opens the database; where the browser forbids it, the history lasts as long as the page. */
  static async open(waiting: () => void, outdated: () => void): Promise<History> {
    const database = await Database.open(waiting, outdated).catch(() => null);
    const history = new History(database);
    if (database) history.conversations.push(...(await database.all()));
    history.sort();
    void history.watch();
    return history;
  }

  get lasting(): boolean {
    return this.database !== null;
  }

  find(id: string): Conversation | null {
    return this.conversations.find((conversation) => conversation.id === id) ?? null;
  }

  /** Saves a conversation's place in the list and its branch on show, and the messages that changed. */
  async save(conversation: Conversation, ...changed: Message[]): Promise<void> {
    await this.write(conversation, changed, false);
  }

  async rename(conversation: Conversation, title: string): Promise<void> {
    conversation.title = title;
    await this.write(conversation, [], true);
  }

  /** Begins an answer in this tab, unless it was reopened. */
  begin(message: Message): void {
    if (this.making.has(message.id)) return;
    this.making.add(message.id);
    this.begun = Promise.all([this.begun, this.tabs.hold(message.id)]);
  }

  /** The end of an answer of this tab is saved. */
  ended(message: Message): void {
    this.tabs.letGo(message.id);
  }

  /**
   * Makes an ended answer a running one of this tab, with whatever was saved of it. Null: another tab was first, or its end
   * is another one by now; that state is then shown.
   */
  async reopen(conversation: Conversation, shown: Message): Promise<Message | null> {
    if (this.making.has(shown.id)) return null;
    this.making.add(shown.id);
    let reopened: Message | null = null;
    try {
      if (await this.tabs.hold(shown.id)) reopened = await this.replaceNewest(conversation, shown);
    } finally {
      if (!reopened) {
        this.making.delete(shown.id);
        this.tabs.letGo(shown.id);
      }
    }
    if (!reopened) await this.read(conversation.id);
    return reopened;
  }

  /** Stores an answer that ended as `shown` did as one that runs, once this tab knows the last that is stored of it. */
  private async replaceNewest(conversation: Conversation, shown: Message): Promise<Message | null> {
    for (let message = shown; message.end === shown.end; ) {
      const { end: _end, error: _error, ...rest } = message;
      const next = { ...rest, revision: (message.revision ?? 0) + 1 };
      if (!this.database || (await this.database.replace(conversation.id, message, next))) {
        delete message.end;
        delete message.error;
        message.revision = next.revision;
        this.tabs.tell({ kind: "saved", chat: conversation.id });
        return message;
      }
      // A tab that is closed may have saved once more without a word of it.
      const newer = await this.readNewer(conversation, message);
      if (!newer) return null;
      message = newer;
    }
    return null;
  }

  /** What is stored of a message if it is newer than here; as left if it ran and nobody makes it. */
  private async readNewer(conversation: Conversation, { id, revision }: Message): Promise<Message | null> {
    await this.read(conversation.id);
    const message = conversation.messages.find((each) => each.id === id);
    if (!message || message.revision === revision) return null;
    if (isRunning(message) && (await this.tabs.abandoned([id])).length > 0) message.end = "left";
    return message;
  }

  async remove(conversation: Conversation): Promise<void> {
    this.drop(conversation);
    const stored = await this.database?.remove(conversation.id);
    // So that "Undo" brings back what other tabs had added, too.
    if (stored) merge(conversation, stored);
    this.tabs.tell({ kind: "removed", chat: conversation.id });
  }

  async clear(): Promise<void> {
    this.conversations.length = 0;
    await this.database?.clear();
    this.tabs.tell({ kind: "cleared" });
  }

  /** Stops the answer that another tab makes in this conversation. */
  stopElsewhere(conversation: Conversation): void {
    this.tabs.tell({ kind: "stop", chat: conversation.id });
  }

  /** Adds the conversations of an exported file beside those here. Returns how many; throws Error on a foreign file. */
  async import(json: string): Promise<number> {
    const found = readExport(json);
    for (const conversation of found) await this.save(conversation);
    return found.length;
  }

  private async write(conversation: Conversation, changed: readonly Message[], renamed: boolean): Promise<void> {
    for (const message of changed) message.revision = (message.revision ?? 0) + 1;
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.sort();
    if (!this.database) return;
    // Who reads of an answer must find its maker.
    await this.begun;
    conversation.title = await this.database.write(conversation, changed, renamed);
    this.tabs.tell({ kind: "saved", chat: conversation.id });
  }

  private async read(chat: string): Promise<void> {
    const saved = await this.database?.read(chat).catch(() => null);
    if (!saved) return;
    const here = this.find(chat);
    if (here) merge(here, saved);
    else this.conversations.push(saved);
    this.sort();
    this.watcher?.changedElsewhere(here ?? saved);
    void this.watch();
  }

  private forget(chat: string | null): void {
    const gone = this.conversations.filter((conversation) => chat === null || conversation.id === chat);
    for (const conversation of gone) {
      this.drop(conversation);
      this.watcher?.removedElsewhere(conversation);
    }
  }

  private drop(conversation: Conversation): void {
    const at = this.conversations.indexOf(conversation);
    if (at >= 0) this.conversations.splice(at, 1);
  }

  /** Watches answers that other tabs make: one that nobody makes any more, after a reload or a crash, is marked as left. */
  private async watch(): Promise<void> {
    if (this.watching) return;
    this.watching = true;
    for (let open = this.elsewhere(); open.length > 0; open = this.elsewhere()) {
      const lost = await this.tabs.abandoned(open);
      for (const conversation of [...this.conversations]) {
        if (conversation.messages.some((each) => lost.includes(each.id))) await this.leave(conversation, lost);
      }
      await new Promise((resolve) => setTimeout(resolve, WATCH_MS));
    }
    this.watching = false;
  }

  /** Marks those of `lost` that still run as left, with the last that their tabs had saved. */
  private async leave(conversation: Conversation, lost: readonly string[]): Promise<void> {
    await this.read(conversation.id);
    const left = conversation.messages.filter((each) => lost.includes(each.id) && isRunning(each) && !this.making.has(each.id));
    for (const message of left) message.end = "left";
    if (left.length > 0) this.watcher?.changedElsewhere(conversation);
  }

  private elsewhere(): string[] {
    const messages = this.conversations.flatMap((conversation) => conversation.messages.filter(isRunning));
    return messages.map(({ id }) => id).filter((id) => !this.making.has(id));
  }

  private sort(): void {
    this.conversations.sort((a, b) => b.updated - a.updated);
  }
}
