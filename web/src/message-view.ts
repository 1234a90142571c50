/** One message of the thread, as elements. */

import { type Call, type Message, isRunning } from "./conversation";
import { copyButton, h, iconButton } from "./dom";
import { MarkdownView } from "./markdown";
import { type Stats, describe } from "./meter";
import { type Action, notice } from "./notices";

export interface Actions {
  edit(message: Message, text: string): void;
  regenerate(message: Message): void;
  /** Goes on with an answer that ended too early. */
  resume(message: Message): void;
  /** Takes the question of an answer into a new chat. */
  startOver(message: Message): void;
  /** Opens the question of an answer for editing. */
  shorten(message: Message): void;
  settings(): void;
  /** Shows the alternative `step` places further. */
  turn(message: Message, step: number): void;
}

export interface Place {
  /** This message among its alternatives, from 0, and how many there are. */
  index: number;
  count: number;
  /** Another tab makes this answer. */
  elsewhere: boolean;
  /** The server has not begun to answer. */
  queued?: boolean;
}

/** Endings that need a word; a plain "stop" needs none. */
const ENDINGS: Record<string, string> = {
  length: "The answer reached the largest length allowed.",
  full: "The context of the model is full: nothing more fits into this chat.",
  stopped: "Stopped.",
  left: "Stopped when the page was left.",
  cut: "The connection was lost before the answer was complete.",
  content_filter: "The answer was filtered.",
  tool_calls: "The model waits for the results of tools, which this page does not run.",
  insufficient_system_resource: "The server ran out of resources.",
};
/** Endings after which the model can go on. */
const RESUMABLE = new Set(["length", "stopped", "left", "cut"])
/** Endings after which the question may be asked again. */
const REPEATABLE = new Set(["error", "left", "cut"]);

export interface MessageView {
  element: HTMLElement;
  update(message: Message, place: Place): void;
  startEdit?(): void;
}

export function messageView(message: Message, place: Place, actions: Actions): MessageView {
  return message.role === "user" ? new UserView(message, place, actions) : new AssistantView(message, place, actions);
}

class UserView implements MessageView {
  readonly element = h("article", { class: "message user", "aria-label": "You" });

  constructor(
    private message: Message,
    private place: Place,
    private readonly actions: Actions,
  ) {
    this.read();
  }

  update(message: Message, place: Place): void {
    const same = place.index === this.place.index && place.count === this.place.count;
    this.message = message;
    this.place = place;
    if (!same && !this.element.querySelector("textarea")) this.read();
  }

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
  private readonly thought = new MarkdownView();
  private readonly thinking = h("details", { class: "thought", hidden: true }, h("summary", {}, "Thought"),
    h("div", { class: "thought-text" }, this.thought.element));
  private readonly calls = h("div", { class: "calls" });
  private readonly wait = h("div", { class: "wait", hidden: true });
  private readonly foot = h("div", { class: "tools" });
  private musing = false;
  /** What is shown: an unchanged message keeps its elements, and with them the focus. */
  private shown = "";

  constructor(
    message: Message,
    place: Place,
    private readonly actions: Actions,
  ) {
    this.element.append(this.thinking, this.body.element, this.calls, this.wait, this.foot);
    this.update(message, place);
  }

  update(message: Message, place: Place): void {
    const state = JSON.stringify([message, place]);
    if (state === this.shown) return;
    this.shown = state;
    const running = isRunning(message);
    this.element.classList.toggle("running", running);
    this.element.setAttribute("aria-busy", String(running));
    this.body.update(message.text);
    this.think(message, running);
    this.calls.replaceChildren(...(message.calls ?? []).map(callView));
    this.await(message, place, running);
    this.element.querySelector(".notice")?.remove();
    const stats = message.stats ? statsLine(message.stats) : null;
    if (running) this.foot.replaceChildren(...(stats && message.text ? [stats] : []));
    else this.finish(message, place, stats);
  }

  private await(message: Message, { elsewhere, queued }: Place, running: boolean): void {
    const empty = message.text === "" && !message.reasoning && !message.calls;
    this.wait.hidden = !running || !(empty || elsewhere);
    if (this.wait.hidden) {
      this.wait.replaceChildren();
      return;
    }
    const words = elsewhere ? "Being answered in another tab…" : queued ? "Waiting for a place in the queue…" : "";
    if (this.wait.textContent !== words || !this.wait.firstChild) this.wait.replaceChildren(ripple(), words);
  }

  private think(message: Message, running: boolean): void {
    const reasoning = message.reasoning ?? "";
    const musing = running && !message.text && !message.calls;
    if (reasoning && this.thinking.hidden) this.thinking.open = musing;
    // Folded once, when the answer begins: whoever opens it again keeps it open.
    else if (this.musing && !musing) this.thinking.open = false;
    this.musing = musing;
    this.thinking.hidden = !reasoning;
    this.thought.update(reasoning);
    const summary = this.thinking.querySelector("summary");
    if (summary) summary.textContent = musing ? "Thinking…" : "Thought";
  }

  private finish(message: Message, place: Place, stats: HTMLElement | null): void {
    const again = (): void => this.actions.regenerate(message);
    const ending = message.error ?? ENDINGS[message.end ?? ""];
    const tone = message.error || message.end === "cut" ? "error" : "info";
    if (ending) this.foot.before(notice(tone, ending, ...this.remedies(message)));
    const copy = message.text ? copyButton("Copy answer", () => message.text) : null;
    // What did not fit does not fit a second time.
    const fits = !(message.end === "full" && message.text === "");
    const parts = [pager(message, place, this.actions), copy, fits ? iconButton("again", "Regenerate", again) : null, stats];
    this.foot.replaceChildren(...parts.filter((part) => part !== null));
  }

  /** What can be done about the way a message ended. */
  private remedies(message: Message): Action[] {
    const { actions } = this;
    const { end = "", text, reasoning, calls } = message;
    if (end === "full") {
      return [
        { label: "New chat", run: () => actions.startOver(message) },
        ...(text === "" ? [{ label: "Shorten the question", run: () => actions.shorten(message) }] : []),
        ...(/max_tokens/.test(message.error ?? "") ? [{ label: "Settings", run: () => actions.settings() }] : []),
      ];
    }
    const again = REPEATABLE.has(end) ? [{ label: "Try again", run: () => actions.regenerate(message) }] : [];
    const on = RESUMABLE.has(end) && (text || reasoning) && !calls ? [{ label: "Continue", run: () => actions.resume(message) }] : [];
    return [...on, ...again];
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

