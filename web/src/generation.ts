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
  /** The server's finish_reason, or "stopped" by the user, "cut" by a lost connection, "error" by a refusal. */
  end: string;
  error: ApiError | null;
}

export class Generation {
  private readonly controller = new AbortController();
  private readonly meter = new Meter(performance.now());
  private text = "";
  private reasoning = "";
  private readonly calls = new Map<number, Call>();
  private queued = false;
  private frame = 0;

  /** `show` is called at most once a frame while the answer grows. */
  constructor(private readonly show: (progress: Progress) => void) {}

  stop(): void {
    this.controller.abort();
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
      if (this.controller.signal.aborted) return this.outcome("stopped", null);
      const known = error instanceof ApiError ? error : new ApiError("cut", String(error));
      return this.outcome(known.kind === "cut" ? "cut" : "error", null, known);
    } finally {
      cancelAnimationFrame(this.frame);
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
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.show(this.progress(null));
    });
  }

  private progress(usage: Usage | null): Progress {
    const { text, reasoning, queued } = this;
    return { text, reasoning, calls: [...this.calls.values()], queued, stats: this.meter.stats(usage) };
  }

  private outcome(end: string, usage: Usage | null, error: ApiError | null = null): Outcome {
    return { ...this.progress(usage), end, error };
  }
}

/** The error as one sentence for the person, with the code to look up and how long to wait. */
export function sentence(error: ApiError): string {
  const wait = error.retryAfter === null ? "" : ` Try again in ${error.retryAfter} s.`;
  if (error.status === 401) return `${error.message} (401) Set the API key in the settings.`;
  return error.status ? `${error.message} (${error.status})${wait}` : error.message;
}
