/** One answer being made: gathers the pieces, measures them, and always ends with an outcome, never a throw. */

import { ApiError, type Endpoint, type Piece, type Usage, answer } from "./api";
import type { Call } from "./conversation";
import { Meter, type Stats } from "./meter";

export interface Progress {
  text: string;
  reasoning: string;
  calls: Call[];
  /** The server keeps the request alive but has not begun to answer. */
  queued: boolean;
  stats: Stats;
}

export interface Outcome extends Progress {
  /** The server's finish_reason, or "stopped", "left" (the page was), "cut" (connection lost), "full" (prompt over the context), "error" (refused). */
  end: string;
  error: ApiError | null;
}

/** A hidden tab is given no frames, but other tabs may be watching what it makes. */
const HIDDEN_MS = 400;

export class Generation {
  private readonly controller = new AbortController();
  private readonly meter = new Meter(performance.now());
  private readonly calls = new Map<number, Call>();
  private queued = false;
  private frame = 0;
  private timer = 0;

  /** `show` is called at most once a frame while the answer grows, and goes on in a hidden tab. It grows from `text`. */
  constructor(
    private readonly show: (progress: Progress) => void,
    private text = "",
    private reasoning = "",
  ) {}

  stop(end: "stopped" | "left" = "stopped"): void {
    this.controller.abort(end);
  }

  async run(endpoint: Endpoint, body: Record<string, unknown>, key: string): Promise<Outcome> {
    try {
      for await (const piece of answer(endpoint, body, key, this.controller.signal)) {
        if (piece.kind === "end") return this.outcome(piece.reason, piece.usage);
        if (piece.kind === "wait") this.queued = true;
        else this.take(piece);
        this.schedule();
      }
      return this.outcome("cut", null);
    } catch (error) {
      const { aborted, reason } = this.controller.signal;
      if (aborted) return this.outcome(String(reason), null);
      const known = error instanceof ApiError ? error : new ApiError("cut", String(error));
      return this.outcome(known.kind === "cut" ? "cut" : isFull(known) ? "full" : "error", null, known);
    } finally {
      this.unschedule();
    }
  }

  private take(piece: Exclude<Piece, { kind: "wait" | "end" }>): void {
    this.meter.piece(performance.now());
    this.queued = false;
    if (piece.kind !== "call") {
      this[piece.kind] += piece.text;
      return;
    }
    const before = this.calls.get(piece.index) ?? { name: "", arguments: "" };
    this.calls.set(piece.index, { name: before.name + piece.name, arguments: before.arguments + piece.text });
  }

  private schedule(): void {
    if (this.timer) return;
    const show = (): void => {
      this.unschedule();
      this.show(this.progress(null));
    };
    this.frame = requestAnimationFrame(show);
    this.timer = window.setTimeout(show, HIDDEN_MS);
  }

  private unschedule(): void {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.timer = 0;
  }

  private progress(usage: Usage | null): Progress {
    const { text, reasoning, queued } = this;
    return { text, reasoning, calls: [...this.calls.values()], queued, stats: this.meter.stats(usage) };
  }

  private outcome(end: string, usage: Usage | null, error: ApiError | null = null): Outcome {
    return { ...this.progress(usage), end, error };
  }
}

/** Whether the server refused because the conversation is longer than the model's context. */
function isFull(error: ApiError): boolean {
  return error.code === "context_length_exceeded" || (error.status === 400 && /\bcontext (length|of \d)/.test(error.message));
}

/** The error as one sentence for the person, with the code to look up and how long to wait. */
export function sentence(error: ApiError): string {
  const wait = error.retryAfter === null ? "" : ` Try again in ${error.retryAfter} s.`;
  if (error.status === 401) return `${error.message} (401) Set the API key in the settings.`;
  return error.status ? `${error.message} (${error.status})${wait}` : error.message;
}
