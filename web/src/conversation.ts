/** A conversation is a tree of messages: editing and regenerating add branches and lose nothing. Pure functions. */

import type { ChatMessage } from "./api";
import type { Stats } from "./meter";

/** A tool that the model wants to call; `arguments` is JSON text. Nothing here runs it. */
export interface Call {
  name: string;
  arguments: string;
}

export interface Message {
  id: string;
  /** The message it answers; null for the first. */
  parent: string | null;
  role: "user" | "assistant";
  text: string;
  reasoning?: string;
  calls?: Call[];
  model?: string;
  /** Why an assistant message ended: the server's finish_reason, or "stopped", "cut" or "error". Absent while it runs. */
  end?: string;
  error?: string;
  stats?: Stats;
}

export interface Conversation {
  id: string;
  title: string;
  /** Milliseconds since 1970. */
  updated: number;
  messages: Message[];
  /** The last message of the branch on show; null when empty. */
  leaf: string | null;
}

export function emptyConversation(now: number): Conversation {
  return { id: newId(), title: "New chat", updated: now, messages: [], leaf: null };
}

/** The messages on show, first to last. */
export function branch(conversation: Conversation): Message[] {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const path: Message[] = [];
  for (let id = conversation.leaf; id !== null && path.length <= byId.size; ) {
    const message = byId.get(id);
    if (!message) break;
    path.push(message);
    id = message.parent;
  }
  return path.reverse();
}

/** The alternatives at a message's place, oldest first, itself included. */
export function siblings(conversation: Conversation, message: Message): Message[] {
  return conversation.messages.filter((other) => other.parent === message.parent && other.role === message.role);
}

/** Adds a message under `parent` and shows it. The first user message names the conversation. */
export function append(
  conversation: Conversation,
  parent: string | null,
  fields: Omit<Message, "id" | "parent">,
  now: number,
): Message {
  const message: Message = { id: newId(), parent, ...fields };
  if (conversation.messages.length === 0) conversation.title = titleOf(fields.text);
  conversation.messages.push(message);
  conversation.leaf = message.id;
  conversation.updated = now;
  return message;
}

/** Shows the branch through `id`, down to its newest end. */
export function show(conversation: Conversation, id: string): void {
  let leaf = id;
  // Bounded: the chain in an imported file may go round.
  for (let depth = 0; depth < conversation.messages.length; depth++) {
    const child = conversation.messages.findLast((message) => message.parent === leaf);
    if (!child) break;
    leaf = child.id;
  }
  conversation.leaf = leaf;
}

/** Removes a message that has no children, and shows its parent. */
export function dropLeaf(conversation: Conversation, message: Message): void {
  conversation.messages = conversation.messages.filter((other) => other !== message);
  conversation.leaf = message.parent;
}

/** What the model is sent: the messages up to and including `last`, failed empty answers left out. */
export function requestMessages(conversation: Conversation, last: Message, system: string): ChatMessage[] {
  const path = branch({ ...conversation, leaf: last.id });
  const said = path.filter((message) => message.role === "user" || message.text !== "");
  const messages: ChatMessage[] = said.map((message) => ({ role: message.role, content: message.text }));
  return system.trim() ? [{ role: "system", content: system }, ...messages] : messages;
}

/** An answer that was running when the page was closed can no longer end: it is marked as cut. */
export function settle(conversation: Conversation): Conversation {
  for (const message of conversation.messages) {
    if (message.role === "assistant" && message.end === undefined) message.end = "cut";
  }
  return conversation;
}

/** Random, and available on plain http too, where crypto.randomUUID is not. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0] ?? "";
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "New chat";
}
