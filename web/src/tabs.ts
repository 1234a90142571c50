/** What the tabs of one browser tell each other (BroadcastChannel): what was saved, and who makes which answer. */

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
  /** The answers being made in this tab. */
  making(): string[];
}

/** How long the other tabs have to name what they make; a busy one may need a moment. */
const ASK_MS = 700;

export class Tabs {
  private readonly channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("deepwell");
  private claimed = new Set<string>();

  constructor(private readonly listener: Listener) {
    this.channel?.addEventListener("message", ({ data }) => this.hear(data as Note));
  }

  tell(note: Exclude<Note, { kind: "who" | "making" }>): void {
    this.channel?.postMessage(note);
  }

  /** Those of `messages` that no other tab is making. */
  async abandoned(messages: readonly string[]): Promise<string[]> {
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
      const messages = this.listener.making();
      if (messages.length > 0) this.channel?.postMessage({ kind: "making", messages });
    }
  }
}
