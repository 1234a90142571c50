/**
 * What the tabs of one browser tell each other (BroadcastChannel): what was saved, and who makes which answer. Where the
 * browser has locks (on https and on this machine), a tab holds one for each answer it makes: it is let go of with the tab,
 * however that ends, and no busy tab is taken for a closed one.
 */

type Note =
  | { kind: "saved"; chat: string }
  | { kind: "removed"; chat: string }
  | { kind: "cleared" }
  /** Whoever makes answers is asked to name them. */
  | { kind: "who" }
  | { kind: "making"; messages: string[] }
  | { kind: "stop"; chat: string };

export interface Listener {
  saved(chat: string): void;
  /** Null: all of them. */
  removed(chat: string | null): void;
  stop(chat: string): void;
}

/** Without locks: how long the other tabs have to name what they make; a busy one may need a moment. */
const ASK_MS = 700;
const LOCK = "deepwell.answer.";

interface Held {
  letGo(): void;
  /** Settles when others may have it. */
  gone: Promise<unknown>;
}

export class Tabs {
  private readonly channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("deepwell");
  private readonly locks = (navigator as { locks?: LockManager }).locks;
  /** The answers of this tab, from before others may read of them until their end is saved. */
  private readonly held = new Map<string, Held>();
  private claimed = new Set<string>();

  constructor(private readonly listener: Listener) {
    this.channel?.addEventListener("message", ({ data }) => this.hear(data as Note));
  }

  tell(note: Exclude<Note, { kind: "who" | "making" }>): void {
    this.channel?.postMessage(note);
  }

  /** Makes an answer this tab's. False: another tab makes it. */
  async hold(message: string): Promise<boolean> {
    // The end of what this tab made of it before may still be on its way into the database.
    await this.held.get(message)?.gone;
    let letGo = (): void => undefined;
    const free = new Promise<void>((resolve) => (letGo = resolve));
    let gone: Promise<unknown> = free;
    const mine = new Promise<boolean>((resolve) => {
      const take = (lock: Lock | null): Promise<void> | null => {
        resolve(lock !== null);
        return lock && free;
      };
      if (this.locks) gone = this.locks.request(LOCK + message, { ifAvailable: true }, take).catch(() => resolve(true));
      else resolve(true);
    });
    this.held.set(message, { letGo, gone });
    if (!(await mine)) this.held.delete(message);
    return mine;
  }

  letGo(message: string): void {
    this.held.get(message)?.letGo();
    this.held.delete(message);
  }

  /** Those of `messages` that no other tab is making. */
  async abandoned(messages: readonly string[]): Promise<string[]> {
    if (this.locks) {
      const { held = [] } = await this.locks.query();
      const names = new Set(held.map(({ name }) => name));
      return messages.filter((id) => this.held.has(id) || !names.has(LOCK + id));
    }
    this.claimed = new Set();
    this.channel?.postMessage({ kind: "who" });
    await new Promise((resolve) => setTimeout(resolve, ASK_MS));
    return messages.filter((id) => !this.claimed.has(id));
  }

  private hear(note: Note): void {
    if (note.kind === "saved") this.listener.saved(note.chat);
    else if (note.kind === "removed") this.listener.removed(note.chat);
    else if (note.kind === "cleared") this.listener.removed(null);
    else if (note.kind === "stop") this.listener.stop(note.chat);
    else if (note.kind === "making") for (const id of note.messages) this.claimed.add(id);
    else {
      const messages = [...this.held.keys()];
      if (messages.length > 0) this.channel?.postMessage({ kind: "making", messages });
    }
  }
}
