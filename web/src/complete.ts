/** The Complete mode: a text before the gap, a text after it, and what the model puts between. */

import type { App } from "./app";
import { announce, copyButton, h, icon, iconButton } from "./dom";
import { nature } from "./empty-state";
import { COMPLETE_EXAMPLES } from "./examples";
import { Generation, type Outcome, type Progress, sentence } from "./generation";
import { autosize, ripple, statsLine } from "./message-view";
import { notice } from "./notices";
import { ownValues, sampling } from "./settings";
import { localStorageOrNothing, sessionStorageOrNothing } from "./storage";

const STORE = "deepwell.draft";
const NO_SUFFIX = "Leave empty to simply go on writing.";

export class Complete {
  private readonly prefix = editor("prefix", "def fibonacci(n):", "5");
  private readonly suffix = editor("suffix", NO_SUFFIX, "2");
  private readonly middle = h("pre", { id: "middle", tabindex: "0", role: "region", "aria-label": "Completion", hidden: true });
  private readonly run = h("button", { type: "button", class: "primary", onclick: () => this.toggle() });
  private readonly result = h("div", { class: "result-tools" });
  private readonly below = h("div", { class: "complete-below" });
  private readonly about = h("div");
  private readonly chips = h("div", { class: "row wrap examples" });
  private readonly gap = h("div", {}, h("label", { for: "suffix" }, "After the gap ", h("small", {}, "optional")), this.suffix);
  private generation: Generation | null = null;
  private text = "";

  constructor(
    private readonly app: App,
    element: HTMLElement,
    openSettings: () => void,
  ) {
    const settings = h("button", { type: "button", class: "quiet sampling", onclick: openSettings }, icon("sliders"), "Sampling");
    element.append(
      h("div", { class: "complete-column" },
        this.about,
        this.chips,
        h("div", { class: "sheet" },
          h("label", { for: "prefix" }, "Before the gap"), this.prefix, this.middle, this.gap),
        h("div", { class: "row wrap" }, this.run, this.result, h("span", { class: "grow" }), settings),
        this.below,
        h("p", { class: "hint" }, h("kbd", {}, "Ctrl"), "+", h("kbd", {}, "Enter"), " completes · ", h("kbd", {}, "Ctrl"), "+",
          h("kbd", {}, "Shift"), "+", h("kbd", {}, "Enter"), " accepts · ", h("kbd", {}, "Esc"), " stops")),
    );
    this.restore();
    this.showButtons();
  }

  /** Fits the boxes to their texts, which a hidden box cannot measure. */
  fit(): void {
    autosize(this.prefix);
    autosize(this.suffix);
  }

  /** Called when the model on offer changes: not every model was taught to fill gaps. */
  modelChanged(): void {
    this.gap.hidden = !this.fills;
    this.about.replaceChildren(...[nature(this.app.model)].filter((line) => line !== null));
    this.chips.replaceChildren(h("span", { class: "hint" }, "Try"), ...this.examples());
  }

  stop(): boolean {
    this.generation?.stop();
    return this.generation !== null;
  }

  toggle(): void {
    if (!this.stop()) void this.complete();
  }

  /** Moves the completion into the text before the gap, so that it can go on from there. */
  accept(): void {
    if (this.generation || !this.text) return;
    this.prefix.value += this.text;
    this.clear();
    this.keep();
    autosize(this.prefix);
    this.prefix.focus();
    this.prefix.setSelectionRange(this.prefix.value.length, this.prefix.value.length);
  }

  /** Asks for a completion, or for more of the one that is there. */
  private async complete(more = false): Promise<void> {
    const begun = more ? this.text : "";
    const generation = new Generation((progress) => this.show(progress), begun);
    this.generation = generation;
    if (!more) this.clear();
    this.middle.hidden = false;
    if (!more) this.middle.replaceChildren(ripple());
    this.showButtons();
    announce("Completing");
    const model = await this.app.modelName();
    const own = ownValues("complete", this.app.model?.advice ?? null);
    const body = { model, prompt: this.prefix.value + begun, ...this.suffixField(), ...sampling(this.app.settings.complete, own) };
    const outcome = await generation.run("v1/completions", body, this.app.key.value);
    this.generation = null;
    if (outcome.error?.status === 401) this.app.askForKey(outcome.error.message);
    this.finish(outcome);
  }

  /** An empty box means "continue"; a suffix asks the model to fill the gap. */
  private suffixField(): { suffix?: string } {
    return this.suffix.value && this.fills ? { suffix: this.suffix.value } : {};
  }

  private get fills(): boolean {
    return this.app.model?.fills ?? true;
  }

  private show({ text, queued, stats }: Progress): void {
    this.text = text;
    if (text) this.middle.textContent = text;
    this.below.replaceChildren(text ? statsLine(stats) : queued ? "Waiting for a place in the queue…" : "");
  }

  private finish(outcome: Outcome): void {
    this.show(outcome);
    this.middle.hidden = !outcome.text;
    // What did not fit does not fit a second time.
    const shorten = { label: "Shorten the text", run: () => this.prefix.focus() };
    const remedy = outcome.end === "full" ? shorten : { label: "Try again", run: () => void this.complete() };
    if (outcome.error) this.below.append(notice("error", sentence(outcome.error), remedy));
    else if (!outcome.text) this.below.append(notice("info", "The model added nothing here."));
    if (outcome.error && outcome.error.kind !== "refused") void this.app.connection.check();
    this.showButtons();
    announce(outcome.error ? sentence(outcome.error) : `Completion ready. ${outcome.text.slice(0, 500)}`);
  }

  private clear(): void {
    this.text = "";
    this.middle.hidden = true;
    this.middle.textContent = "";
    this.below.replaceChildren();
    this.showButtons();
  }

  private showButtons(): void {
    const running = this.generation !== null;
    this.run.replaceChildren(icon(running ? "stop" : "send"), running ? "Stop" : "Complete");
    if (running || !this.text) {
      this.result.replaceChildren();
      return;
    }
    const on = h("button", { type: "button", class: "quiet", onclick: () => void this.complete(true) }, icon("right"), "Continue");
    const accept = h("button", { type: "button", class: "quiet", onclick: () => this.accept() }, icon("check"), "Accept");
    const discard = iconButton("close", "Discard completion", () => this.clear());
    const copy = copyButton("Copy completion", () => this.text);
    this.result.replaceChildren(accept, on, copy, discard);
  }

  private examples(): HTMLElement[] {
    return COMPLETE_EXAMPLES.filter(({ suffix }) => !suffix || this.fills).map(({ title, prefix, suffix }) => {
      const use = (): void => {
        if (this.generation) return;
        this.prefix.value = prefix;
        this.suffix.value = suffix;
        this.keep();
        this.fit();
        void this.complete();
      };
      return h("button", { type: "button", class: "chip", onclick: use }, title);
    });
  }

  private restore(): void {
    try {
      // A tab's own draft; a new tab begins with the last one of any.
      const kept = sessionStorageOrNothing().getItem(STORE) ?? localStorageOrNothing().getItem(STORE);
      const draft = JSON.parse(kept ?? "{}") as { prefix?: string; suffix?: string };
      this.prefix.value = draft.prefix ?? "";
      this.suffix.value = draft.suffix ?? "";
    } catch {
      // A broken draft is no loss.
    }
    for (const box of [this.prefix, this.suffix]) box.addEventListener("input", () => this.keep());
  }

  private keep(): void {
    try {
      const draft = JSON.stringify({ prefix: this.prefix.value, suffix: this.suffix.value });
      for (const storage of [sessionStorageOrNothing(), localStorageOrNothing()]) storage.setItem(STORE, draft);
    } catch {
      // A full storage must not stop typing.
    }
  }
}

function editor(id: string, placeholder: string, rows: string): HTMLTextAreaElement {
  const box = h("textarea", { id, placeholder, rows, class: "code", spellcheck: "false", autocapitalize: "off", autocomplete: "off" });
  box.addEventListener("input", () => autosize(box));
  return box;
}
