/** What the user chooses, as one table: each field's range and help, its check, its memory and its place in a request. */

export type Mode = "chat" | "complete";

interface NumberField {
  kind: "number" | "integer";
  key: string;
  label: string;
  help: string;
  min: number;
  max: number;
  /** The minimum itself is not allowed. */
  above?: true;
  /** Shown under "More". */
  more?: true;
}

interface StopField {
  kind: "lines";
  key: "stop";
  label: string;
  help: string;
  maxLines: number;
  more?: true;
}

export type Field = NumberField | StopField;

export const FIELDS: readonly Field[] = [
  { kind: "number", key: "temperature", label: "Temperature", min: 0, max: 2, help: "0 always takes the likeliest token." },
  { kind: "number", key: "top_p", label: "Top-p", min: 0, max: 1, above: true, help: "Keeps the likeliest tokens up to this share." },
  { kind: "integer", key: "max_tokens", label: "Max tokens", min: 1, max: 1_000_000, help: "The longest answer." },
  { kind: "integer", key: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, help: "The same seed gives the same answer." },
  { kind: "integer", key: "top_k", label: "Top-k", min: 0, max: 1_000_000, more: true, help: "Keeps the k likeliest tokens; 0 keeps all." },
  { kind: "number", key: "min_p", label: "Min-p", min: 0, max: 1, more: true, help: "Drops tokens below this share of the likeliest." },
  { kind: "number", key: "presence_penalty", label: "Presence penalty", min: -2, max: 2, more: true, help: "Above 0 favours new words." },
  { kind: "number", key: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, more: true, help: "Above 0 avoids frequent words." },
  { kind: "number", key: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 10, more: true, help: "Above 1 avoids repeating." },
  { kind: "lines", key: "stop", label: "Stop texts", maxLines: 16, more: true, help: "One a line, \\n for a line end. The answer ends before any of them." },
];

/** What was typed, field by field and mode by mode. An empty text leaves the choice to the page or the server. */
export type Typed = Record<string, string>;

export interface Settings {
  chat: Typed;
  complete: Typed;
  system: string;
  model: string;
  mode: Mode | null;
}

type Values = Readonly<Record<string, number>>;

/** What the page asks for where neither the user nor the model's files say: at the server's 1, small models ramble. */
const OWN: Readonly<Record<Mode, Values>> = {
  chat: { temperature: 0.3, top_p: 0.9 },
  complete: { temperature: 0.2 },
};

/** The page's own values for a model with this advice. */
export function ownValues(mode: Mode, advice: Values | null): Values {
  return advice ? {} : OWN[mode];
}

export const DEFAULTS: Settings = {
  chat: {},
  complete: { max_tokens: "128" },
  system: "",
  model: "",
  mode: null,
};

/** Says what is wrong with a typed value, or null when it is allowed. */
export function problem(field: Field, typed: string): string | null {
  if (typed.trim() === "") return null;
  if (field.kind === "lines") {
    return lines(typed).length > field.maxLines ? `At most ${field.maxLines} lines.` : null;
  }
  const value = Number(typed);
  const from = field.above ? `above ${field.min}` : `from ${field.min}`;
  const range = field.max >= 1_000_000 ? (field.min > 0 ? "of 1 or more" : "of 0 or more") : `${from} to ${field.max}`;
  const what = field.kind === "integer" ? "a whole number" : "a number";
  const fits = value >= field.min && value <= field.max && !(field.above && value === field.min);
  const whole = field.kind === "number" || Number.isSafeInteger(value);
  return Number.isFinite(value) && fits && whole ? null : `${field.label} must be ${what} ${range}.`;
}

/** The request fields these settings ask for; empty and invalid ones are as in `own`, or left out. */
export function sampling(typed: Typed, own: Values): Record<string, unknown> {
  const fields: Record<string, unknown> = { ...own };
  for (const field of FIELDS) {
    const value = typed[field.key] ?? "";
    if (value.trim() === "" || problem(field, value)) continue;
    fields[field.key] = field.kind === "lines" ? lines(value) : Number(value);
  }
  return fields;
}

/** The request field for the choice "on" or "off"; none for the server's choice. */
export function thinking(typed: Typed): Record<string, unknown> {
  const type = { on: "enabled", off: "disabled" }[typed["thinking"] ?? ""];
  return type === undefined ? {} : { thinking: { type } };
}

const STORE = "deepwell.settings";

export function loadSettings(storage: Pick<Storage, "getItem">): Settings {
  try {
    const saved: unknown = JSON.parse(storage.getItem(STORE) ?? "{}");
    return { ...structuredClone(DEFAULTS), ...(saved as Partial<Settings>) };
  } catch {
    return structuredClone(DEFAULTS);
  }
}

/** Remembers the settings where the browser allows it; without storage they last as long as the page. */
export function saveSettings(storage: Pick<Storage, "setItem">, settings: Settings): void {
  try {
    storage.setItem(STORE, JSON.stringify(settings));
  } catch {
    // Blocked or full storage must not stop a chat.
  }
}

/** Stop texts may hold spaces, so only the line ends are taken off; "\n" and "\t" are written as in Python. */
function lines(typed: string): string[] {
  const escapes: Record<string, string> = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };
  const unescape = (line: string): string => line.replace(/\\[nt\\]/g, (found) => escapes[found] ?? found);
  return typed.split("\n").filter((line) => line !== "").map(unescape);
}
