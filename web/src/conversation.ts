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
  /** When it was added, in milliseconds since 1970 or as a plain number of order; puts alternatives in order. */
  at: number;
  /** How often it was saved: of two copies the one with more is the newer. */
  revision?: number;
  role: "user" | "assistant";
  text: string;
  reasoning?: string;
  calls?: Call[];
  model?: string;
  /** Why an assistant message ended: the server's finish_reason, or "stopped", "left" (its page was), "cut", "full" (context) or
   * "error". Absent while it runs, here or in another tab. */
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

/** The alternatives at a message's place, oldest first, itself included; other failed answers without a word are none. */
export function siblings(conversation: Conversation, message: Message): Message[] {
  return conversation.messages.filter(
    (other) =>
      other.parent === message.parent &&
      other.role === message.role &&
      (other.id === message.id || !isBlank(conversation, other)),
  );
}

/** Whether the message is an answer that is being made, here or in another tab. */
export function isRunning(message: Message): boolean {
  return message.role === "assistant" && message.end === undefined;
}

/** Adds a message under `parent` and shows it. The first user message names the conversation. */
export function append(
  conversation: Conversation,
  parent: string | null,
  fields: Omit<Message, "id" | "parent" | "at">,
  now: number,
): Message {
  const last = conversation.messages.at(-1)?.at ?? 0;
  const message: Message = { id: newId(), parent, at: Math.max(now, last + 1), ...fields };
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
    const children = conversation.messages.filter((message) => message.parent === leaf);
    const child = children.findLast((message) => !isBlank(conversation, message)) ?? children.at(-1);
    if (!child) break;
    leaf = child.id;
  }
  conversation.leaf = leaf;
}

/** Takes over what another tab saved: newer copies of messages, and messages that are not here. Removes nothing. */
export function merge(conversation: Conversation, saved: Conversation): void {
  const copies = new Map(conversation.messages.map((message) => [message.id, message]));
  for (const message of saved.messages) {
    const here = copies.get(message.id);
    if (!here || (message.revision ?? 0) > (here.revision ?? 0)) copies.set(message.id, message);
  }
  conversation.messages = inOrder([...copies.values()]);
  conversation.title = saved.title;
  conversation.updated = Math.max(conversation.updated, saved.updated);
  if (conversation.leaf === null) conversation.leaf = saved.leaf;
  else show(conversation, conversation.leaf);
}

export function inOrder(messages: Message[]): Message[] {
  return messages.sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
}

/** What the model is sent: the messages up to and including `last`, failed empty answers left out. */
export function requestMessages(conversation: Conversation, last: Message, system: string): ChatMessage[] {
  const path = branch({ ...conversation, leaf: last.id });
  const said = path.filter((message) => message.role === "user" || message.text !== "");
  const messages: ChatMessage[] = said.map((message) => ({ role: message.role, content: message.text }));
  return system.trim() ? [{ role: "system", content: system }, ...messages] : messages;
}

/** An answer as the beginning of itself: its text, or the thought that it had not left yet. */
export function unfinished({ text, reasoning }: Message): ChatMessage {
  const thought = text === "" && reasoning ? { reasoning_content: reasoning } : {};
  return { role: "assistant", content: text, ...thought, prefix: true };
}

function isBlank(conversation: Conversation, message: Message): boolean {
  const said = message.text !== "" || message.reasoning || message.calls;
  if (message.role === "user" || isRunning(message) || said) return false;
  return !conversation.messages.some((other) => other.parent === message.id);
}

/** Random, and available on plain http too, where crypto.randomUUID is not. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0] ?? "";
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "New chat";
}
