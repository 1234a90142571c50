/** One message of the thread, as elements. */

import type { Call, Message } from "./conversation";
import { copyButton, h, iconButton } from "./dom";
import { MarkdownView } from "./markdown";
import { type Stats, describe } from "./meter";
import { notice } from "./notices";

export interface Actions {
  edit(message: Message, text: string): void;
  regenerate(message: Message): void;
  /** Shows the alternative `step` places further. */
  turn(message: Message, step: number): void;
}

export interface Place {
  /** This message among its alternatives, from 0, and how many there are. */
  index: number;
  count: number;
}

/** Endings that need a word; a plain "stop" needs none. */
const ENDINGS: Record<string, string> = {
  length: "The answer reached the largest length allowed.",
  stopped: "Stopped.",
  cut: "The connection was lost before the answer was complete.",
  content_filter: "The answer was filtered.",
  tool_calls: "The model waits for the results of tools, which this page does not run.",
  insufficient_system_resource: "The server ran out of resources.",
};

export interface MessageView {
  element: HTMLElement;
  update(message: Message, queued?: boolean): void;
}

export function messageView(message: Message, place: Place, actions: Actions): MessageView {
  return message.role === "user" ? new UserView(message, place, actions) : new AssistantView(message, place, actions);
}

class UserView implements MessageView {
  readonly element = h("article", { class: "message user", "aria-label": "You" });

  constructor(
    private readonly message: Message,
    private readonly place: Place,
    private readonly actions: Actions,
  ) {
    this.read();
  }

  update(): void {}

  /** Swaps the message for a text box; sending it opens a new branch. */
  startEdit(): void {
    const box = h("textarea", { "aria-label": "Edit message", rows: "1" });
    const send = (): void => (box.value.trim() ? this.actions.edit(this.message, box.value) : undefined);
    const cancel = (): void => {
      this.read();
      this.element.querySelector<HTMLElement>("[data-edit]")?.focus();
    };
    box.value = this.message.text;
    box.addEventListener("input", () => autosize(box));
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (sends(event)) {
        event.preventDefault();
        send();
      }
    });
    const buttons = h(
      "div",
      { class: "row end" },
      h("button", { type: "button", class: "quiet", onclick: cancel }, "Cancel"),
      h("button", { type: "button", class: "primary", onclick: send }, "Send"),
    );
    this.element.replaceChildren(h("div", { class: "bubble editing" }, box, buttons));
    autosize(box);
    box.focus();
  }

  private read(): void {
    const edit = iconButton("edit", "Edit message", () => this.startEdit());
    edit.dataset["edit"] = "";
    const tools = h("div", { class: "tools" }, pager(this.message, this.place, this.actions));
    tools.append(copyButton("Copy message", () => this.message.text), edit);
    this.element.replaceChildren(h("div", { class: "bubble" }, this.message.text), tools);
  }
}

class AssistantView implements MessageView {
  readonly element = h("article", { class: "message assistant", "aria-label": "Answer" });
  private readonly body = new MarkdownView();
  private readonly thought = h("div", { class: "thought-text" });
  private readonly thinking = h("details", { class: "thought", hidden: true }, h("summary", {}, "Thought"), this.thought);
  private readonly calls = h("div", { class: "calls" });
  private readonly wait = h("div", { class: "wait", hidden: true });
  private readonly foot = h("div", { class: "tools" });
  private musing = false;

  constructor(
    message: Message,
    private readonly place: Place,
    private readonly actions: Actions,
  ) {
    this.element.append(this.thinking, this.body.element, this.calls, this.wait, this.foot);
    this.update(message);
  }

  update(message: Message, queued = false): void {
    const running = message.end === undefined;
    this.element.classList.toggle("running", running);
    this.element.setAttribute("aria-busy", String(running));
    this.body.update(message.text);
    this.think(message, running);
    this.calls.replaceChildren(...(message.calls ?? []).map(callView));
    this.wait.hidden = !running || message.text !== "" || Boolean(message.reasoning) || Boolean(message.calls);
    if (!this.wait.hidden) this.wait.replaceChildren(ripple(), queued ? "Waiting for a place in the queue…" : "");
    const stats = message.stats ? statsLine(message.stats) : null;
    if (running) this.foot.replaceChildren(...(stats && message.text ? [stats] : []));
    else this.finish(message, stats);
  }

  private think(message: Message, running: boolean): void {
    const reasoning = message.reasoning ?? "";
    const musing = running && !message.text && !message.calls;
    if (reasoning && this.thinking.hidden) this.thinking.open = musing;
    // Folded once, when the answer begins: whoever opens it again keeps it open.
    else if (this.musing && !musing) this.thinking.open = false;
    this.musing = musing;
    this.thinking.hidden = !reasoning;
    if (this.thought.textContent !== reasoning) this.thought.textContent = reasoning;
    const summary = this.thinking.querySelector("summary");
    if (summary) summary.textContent = musing ? "Thinking…" : "Thought";
  }

  private finish(message: Message, stats: HTMLElement | null): void {
    const again = (): void => this.actions.regenerate(message);
    const ending = message.error ?? ENDINGS[message.end ?? ""];
    const failed = message.end === "error" || message.end === "cut";
    this.element.querySelector(".notice")?.remove();
    if (ending) {
      const buttons = failed ? [{ label: "Try again", run: again }] : [];
      this.foot.before(notice(failed ? "error" : "info", ending, ...buttons));
    }
    const copy = message.text ? copyButton("Copy answer", () => message.text) : null;
    const parts = [pager(message, this.place, this.actions), copy, iconButton("again", "Regenerate", again), stats];
    this.foot.replaceChildren(...parts.filter((part) => part !== null));
  }
}

/** A call as a name and its arguments, one value a line once they are whole. */
function callView(call: Call): HTMLElement {
  return h("div", { class: "call" }, h("span", {}, "Calls ", h("b", {}, call.name)), h("pre", {}, indented(call.arguments)));
}

function indented(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

/** Back and forward between alternatives; nothing when there is one. */
function pager(message: Message, { index, count }: Place, actions: Actions): HTMLElement | null {
  if (count < 2) return null;
  const back = iconButton("left", "Previous version", () => actions.turn(message, -1));
  const forward = iconButton("right", "Next version", () => actions.turn(message, 1));
  back.disabled = index === 0;
  forward.disabled = index === count - 1;
  return h("span", { class: "pager" }, back, h("span", {}, `${index + 1} / ${count}`), forward);
}

export function statsLine(stats: Stats): HTMLElement {
  const parts = describe(stats).map(({ label, title }) => h("span", { title }, label));
  return h("span", { class: "stats" }, ...parts);
}

export function ripple(): HTMLElement {
  return h("span", { class: "ripple", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
}

/** Whether this key press sends a text: Enter alone, but not while composing, and not on a touch keyboard. */
export function sends(event: KeyboardEvent): boolean {
  const plain = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  return plain && !onTouch();
}

export function onTouch(): boolean {
  return matchMedia("(hover: none) and (pointer: coarse)").matches;
}

/** Grows a text box with its text, up to the limit in the style sheet. */
export function autosize(box: HTMLTextAreaElement): void {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

