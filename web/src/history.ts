/** Conversations kept in this browser (IndexedDB), one record each. */

import { type Call, type Conversation, type Message, newId, settle } from "./conversation";

const STORE = "conversations";

export class History {
  /** Newest first; always in step with the database. */
  readonly conversations: Conversation[] = [];

  private constructor(private readonly database: IDBDatabase | null) {}

  /** Opens the database; where the browser forbids it, the history lasts as long as the page. */
  static async open(): Promise<History> {
    const database = await openDatabase().catch(() => null);
    const history = new History(database);
    if (database) {
      const saved = await settled<Conversation[]>(database.transaction(STORE).objectStore(STORE).getAll());
      history.conversations.push(...saved.map(settle));
      history.sort();
    }
    return history;
  }

  get lasting(): boolean {
    return this.database !== null;
  }

  /** Adds or overwrites a conversation. */
  async save(conversation: Conversation): Promise<void> {
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.sort();
    await this.write((store) => store.put(conversation));
  }

  async remove(conversation: Conversation): Promise<void> {
    const at = this.conversations.indexOf(conversation);
    if (at >= 0) this.conversations.splice(at, 1);
    await this.write((store) => store.delete(conversation.id));
  }

  async clear(): Promise<void> {
    this.conversations.length = 0;
    await this.write((store) => store.clear());
  }

  export(): string {
    return JSON.stringify({ format: "deepwell-conversations", version: 1, conversations: this.conversations }, null, 2);
  }

  /** Adds the conversations of an exported file beside those here. Returns how many; throws Error on a foreign file. */
  async import(json: string): Promise<number> {
    const found = readExport(json);
    for (const conversation of found) await this.save(conversation);
    return found.length;
  }

  private sort(): void {
    this.conversations.sort((a, b) => b.updated - a.updated);
  }

  private async write(change: (store: IDBObjectStore) => IDBRequest): Promise<void> {
    if (!this.database) return;
    const transaction = this.database.transaction(STORE, "readwrite");
    change(transaction.objectStore(STORE));
    await new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error ?? new Error("The browser's database failed."));
    });
  }
}

function openDatabase(): Promise<IDBDatabase> {
  const request = indexedDB.open("deepwell", 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
  return settled(request);
}

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("The browser's database failed."));
  });
}

export function readExport(json: string): Conversation[] {
  const foreign = new Error("This file is not an export of Deepwell conversations.");
  let body: unknown;
  try {
    body = JSON.parse(json);
  } catch {
    throw foreign;
  }
  const entries = (body as { conversations?: unknown } | null)?.conversations;
  if (!Array.isArray(entries) || !entries.every(isConversation)) throw foreign;
  // New ids, so that importing never overwrites a conversation that is here.
  return entries.map((entry) => settle({ ...entry, id: newId() }));
}

function isConversation(value: unknown): value is Conversation {
  const entry = value as Partial<Conversation> | null;
  return (
    typeof entry?.title === "string" &&
    typeof entry.updated === "number" &&
    (entry.leaf === null || typeof entry.leaf === "string") &&
    Array.isArray(entry.messages) &&
    entry.messages.every(isMessage)
  );
}

function isMessage(value: unknown): value is Message {
  const message = value as Partial<Message> | null;
  const parent = message?.parent;
  return (
    typeof message?.id === "string" &&
    (parent === null || typeof parent === "string") &&
    (message.role === "user" || message.role === "assistant") &&
    typeof message.text === "string" &&
    (message.calls === undefined || (Array.isArray(message.calls) && message.calls.every(isCall)))
  );
}

function isCall(value: unknown): value is Call {
  const call = value as Partial<Call> | null;
  return typeof call?.name === "string" && typeof call.arguments === "string";
}
