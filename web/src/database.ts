/**
 * The browser's database (IndexedDB): a record for each conversation, and one for each message. Every change is made inside
 * one transaction from what is stored at that moment, so tabs that write at the same time lose nothing of each other's.
 */

import { type Conversation, type Message, inOrder } from "./conversation";

const NAME = "deepwell";
/** 1 kept a conversation with its messages in one record. */
const VERSION = 2;
const HEADS = "conversations";
const MESSAGES = "messages";

type Head = Omit<Conversation, "messages">;
type Row = Message & { chat: string };

export class Database {
  private constructor(private readonly connection: IDBDatabase) {}

  /** Opens the database. `waiting`: tabs of an older page hold it. `outdated`: a newer page took it from this one. */
  static async open(waiting: () => void, outdated: () => void): Promise<Database> {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = ({ oldVersion }) => {
      const { result, transaction } = request;
      result.createObjectStore(MESSAGES, { keyPath: ["chat", "id"] });
      if (oldVersion < 1) result.createObjectStore(HEADS, { keyPath: "id" });
      else if (transaction) splitRecords(transaction);
    };
    request.onblocked = waiting;
    const connection = await settled(request);
    connection.onversionchange = () => {
      connection.close();
      outdated();
    };
    return new Database(connection);
  }

  async all(): Promise<Conversation[]> {
    const { heads, messages } = this.stores("readonly");
    const [saved, rows] = await Promise.all([settled<Head[]>(heads.getAll()), settled<Row[]>(messages.getAll())]);
    const byChat = new Map(saved.map((head) => [head.id, [] as Row[]]));
    for (const row of rows) byChat.get(row.chat)?.push(row);
    return saved.map((head) => whole(head, byChat.get(head.id) ?? []));
  }

  async read(id: string): Promise<Conversation | null> {
    const { heads, messages } = this.stores("readonly");
    const [head, rows] = await Promise.all([
      settled<Head | undefined>(heads.get(id)),
      settled<Row[]>(messages.getAll(messagesOf(id))),
    ]);
    return head ? whole(head, rows) : null;
  }

  /**
   * Adds or overwrites `changed` messages of a conversation; all of them if the conversation is new here or was deleted by
   * another tab. Its stored title stays unless `renamed`. Returns the title that is stored now.
   */
  async write(conversation: Conversation, changed: readonly Message[], renamed = false): Promise<string> {
    const { heads, messages, done } = this.stores("readwrite");
    const { id, title, updated, leaf } = conversation;
    const stored = await settled<Head | undefined>(heads.get(id));
    for (const message of stored ? changed : conversation.messages) messages.put({ ...message, chat: id });
    const head = {
      id,
      title: stored && !renamed ? stored.title : title,
      updated: Math.max(updated, stored?.updated ?? 0),
      leaf,
    };
    heads.put(head);
    await done;
    return head.title;
  }

  /** Stores `next` in place of the message `before`, unless another tab changed that meanwhile. Returns whether it did. */
  async replace(chat: string, before: Message, next: Message): Promise<boolean> {
    const { messages, done } = this.stores("readwrite");
    const stored = await settled<Row | undefined>(messages.get([chat, before.id]));
    const same = stored !== undefined && stored.revision === before.revision;
    if (same) messages.put({ ...next, chat });
    await done;
    return same;
  }

  /** Deletes a conversation. Returns it as it was stored, with what other tabs had added. */
  async remove(id: string): Promise<Conversation | null> {
    const { heads, messages, done } = this.stores("readwrite");
    const head = await settled<Head | undefined>(heads.get(id));
    const rows = await settled<Row[]>(messages.getAll(messagesOf(id)));
    heads.delete(id);
    messages.delete(messagesOf(id));
    await done;
    return head ? whole(head, rows) : null;
  }

  async clear(): Promise<void> {
    const { heads, messages, done } = this.stores("readwrite");
    heads.clear();
    messages.clear();
    await done;
  }

  private stores(mode: IDBTransactionMode): { heads: IDBObjectStore; messages: IDBObjectStore; done: Promise<void> } {
    const transaction = this.connection.transaction([HEADS, MESSAGES], mode);
    const done = new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error ?? new Error("The browser's database failed."));
    });
    // Whoever reads does not wait for the end; a failed request says so itself.
    done.catch(() => undefined);
    return { heads: transaction.objectStore(HEADS), messages: transaction.objectStore(MESSAGES), done };
  }
}

/** Version 1 to 2, inside the upgrade: all or nothing. */
function splitRecords(transaction: IDBTransaction): void {
  const heads = transaction.objectStore(HEADS);
  const messages = transaction.objectStore(MESSAGES);
  const cursor = heads.openCursor();
  cursor.onsuccess = () => {
    if (!cursor.result) return;
    const { messages: old, ...head } = cursor.result.value as Conversation;
    old.forEach((message, index) => messages.put({ ...message, at: index, chat: head.id }));
    cursor.result.update(head);
    cursor.result.continue();
  };
}

function whole(head: Head, rows: Row[]): Conversation {
  return { ...head, messages: inOrder(rows.map(({ chat: _, ...message }) => message)) };
}

/** Keys of a conversation's messages: in IndexedDB's order an array comes after every text. */
function messagesOf(chat: string): IDBKeyRange {
  return IDBKeyRange.bound([chat], [chat, []]);
}

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("The browser's database failed."));
  });
}
