/** How fast an answer came and what it used. Pure: the clock is passed in. */

import type { Usage } from "./api";

export interface Stats {
  /** Milliseconds from asking to the first token; null when none came. */
  first: number | null;
  /** Tokens a second between the first and the last token; null when they came almost at once. */
  rate: number | null;
  /** Generated tokens. Exact from the server's usage; otherwise the number of pieces received. */
  tokens: number;
  exact: boolean;
  prompt: number | null;
  hit: number | null;
}

/** A shorter time than this measures the network's packets, not the model. */
const MIN_ELAPSED_MS = 20;

export class Meter {
  private firstAt: number | null = null;
  private lastAt = 0;
  private pieces = 0;

  /** `askedAt` and all later times are milliseconds of one clock. */
  constructor(private readonly askedAt: number) {}

  piece(at: number): void {
    this.firstAt ??= at;
    this.lastAt = at;
    this.pieces += 1;
  }

  stats(usage: Usage | null): Stats {
    const tokens = usage?.completion ?? this.pieces;
    const elapsed = this.firstAt === null ? 0 : this.lastAt - this.firstAt;
    return {
      first: this.firstAt === null ? null : this.firstAt - this.askedAt,
      rate: elapsed >= MIN_ELAPSED_MS && tokens > 1 ? ((tokens - 1) * 1000) / elapsed : null,
      tokens,
      exact: usage !== null,
      prompt: usage?.prompt ?? null,
      hit: usage?.hit ?? null,
    };
  }
}

/** The stats as short labelled parts, e.g. "42.1 tokens/s". */
export function describe(stats: Stats): { label: string; title: string }[] {
  const about = stats.exact ? "" : "~";
  const parts: { label: string; title: string }[] = [];
  if (stats.rate !== null) parts.push({ label: `${about}${rate(stats.rate)} tokens/s`, title: "Decoding speed" });
  const tokens = `${about}${stats.tokens} ${stats.tokens === 1 ? "token" : "tokens"}`;
  if (stats.exact || stats.tokens) parts.push({ label: tokens, title: "Generated tokens" });
  if (stats.first !== null) parts.push({ label: `first after ${seconds(stats.first)}`, title: "Time to first token" });
  if (stats.prompt !== null) {
    const cached = stats.hit ? `, ${stats.hit} from cache` : "";
    parts.push({ label: `prompt ${stats.prompt}${cached}`, title: "Prompt tokens, and those found in the prefix cache" });
  }
  return parts;
}

const rate = (value: number): string => (value < 100 ? value.toFixed(1) : Math.round(value).toString());
const seconds = (ms: number): string => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);
