/** Texts that were typed but not sent, one for each chat. The draft of a new chat is its tab's own. */

type Store = Pick<Storage, "getItem" | "setItem" | "removeItem" | "key" | "length">;

const STORE = "deepwell.draft.";
const NEW = "new";

export class Drafts {
  /** What the browser's storage may refuse is kept at least as long as the page. */
  private readonly kept = new Map<string, string>();

  constructor(
    private readonly shared: Store,
    private readonly own: Store,
  ) {}

  /** The draft of a chat; null stands for the new one. */
  read(chat: string | null): string {
    const key = chat ?? NEW;
    return this.kept.get(key) ?? this.storage(chat).getItem(STORE + key) ?? "";
  }

  keep(chat: string | null, text: string): void {
    const key = chat ?? NEW;
    this.kept.set(key, text);
    try {
      if (text) this.storage(chat).setItem(STORE + key, text);
      else this.storage(chat).removeItem(STORE + key);
    } catch {
      // A full storage must not stop typing.
    }
  }

  /** Forgets the drafts of chats that are gone. */
  prune(chats: readonly { id: string }[]): void {
    const known = new Set(chats.map(({ id }) => STORE + id));
    const keys = Array.from({ length: this.shared.length }, (_, at) => this.shared.key(at) ?? "");
    for (const key of keys) if (key.startsWith(STORE) && !known.has(key)) this.shared.removeItem(key);
  }

  private storage(chat: string | null): Store {
    return chat === null ? this.own : this.shared;
  }
}
