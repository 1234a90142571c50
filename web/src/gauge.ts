/** How much of the model's context a chat has used. */

import type { Model } from "./api";
import type { Message } from "./conversation";
import { byId, h } from "./dom";

/** From this share on, a hint says that the context is nearly full. */
const NEARLY = 0.85;

/** Tokens of the prompt and the answer together, when the server said how many. */
export function usedTokens({ stats }: Message): number | null {
  return stats?.exact && stats.prompt !== null ? stats.prompt + stats.tokens : null;
}

/** Whether nothing more fits after this answer. */
export function isFull(message: Message, model: Model | null): boolean {
  const used = usedTokens(message);
  return used !== null && Boolean(model?.context) && used >= (model?.context ?? 0);
}

export class Gauge {
  private readonly place = byId("gauge");
  private readonly meter = h("meter", { min: "0", "aria-label": "Context used" });
  private readonly words = h("span");
  private readonly state = h("span");
  private readonly hint: HTMLElement;

  constructor(newChat: () => void) {
    const button = h("button", { type: "button", class: "link", onclick: newChat }, "start a new chat");
    this.hint = h("span", { hidden: true }, this.state, " ", button, ".");
    this.place.append(this.meter, this.words, this.hint);
  }

  /** Shows the use after the last answer of `path` whose size is known. */
  show(path: readonly Message[], model: Model | null): void {
    const last = path.findLast((message) => usedTokens(message) !== null);
    const used = last ? usedTokens(last) : null;
    const context = model?.context ?? null;
    this.place.hidden = used === null || context === null;
    if (used === null || context === null) return;
    this.meter.max = context;
    this.meter.high = context * NEARLY;
    this.meter.value = Math.min(used, context);
    this.words.textContent = `${used.toLocaleString("en")} of ${context.toLocaleString("en")} tokens`;
    this.hint.hidden = used < context * NEARLY;
    this.state.textContent = used < context ? "Nearly full: long answers will be cut; soon" : "Full:";
  }
}
