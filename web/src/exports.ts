/** The file that conversations are exported to and imported from. */

import { type Call, type Conversation, type Message, newId } from "./conversation";

export function writeExport(conversations: readonly Conversation[]): string {
  return JSON.stringify({ format: "deepwell-conversations", version: 1, conversations }, null, 2);
}

/** The conversations of a file, under new ids, so that importing never overwrites one that is here. */
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
  return entries.map((entry) => ({ ...entry, id: newId(), messages: entry.messages.map(settled) }));
}

/** Older files have no `at`; an answer that was running when it was written can no longer end. */
function settled(message: Message, index: number): Message {
  const { at = index } = message as Partial<Message>;
  const cut = message.role === "assistant" && message.end === undefined;
  return { ...message, at, ...(cut ? { end: "cut" } : {}) };
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
    (message.at === undefined || typeof message.at === "number") &&
    (message.role === "user" || message.role === "assistant") &&
    typeof message.text === "string" &&
    (message.calls === undefined || (Array.isArray(message.calls) && message.calls.every(isCall)))
  );
}

function isCall(value: unknown): value is Call {
  const call = value as Partial<Call> | null;
  return typeof call?.name === "string" && typeof call.arguments === "string";
}
