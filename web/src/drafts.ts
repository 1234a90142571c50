/** Texts that were typed but not sent, one for each chat. The draft of a new chat is its tab's own. */

const STORE = "deepwell.draft.";
const NEW = "new";

export class Drafts {
  /** What the browser's storage may refuse is kept at least as long as the page. */
  private readonly kept = new Map<string, string>();

  constructor(
    private readonly shared: Pick<Storage, "getItem" | "setItem" | "removeItem">,
    private readonly own: Pick<Storage, "getItem" | "setItem" | "removeItem">,
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

  private storage(chat: string | null): Pick<Storage, "getItem" | "setItem" | "removeItem"> {
    return chat === null ? this.own : this.shared;
  }
}
