/** Administrators' endpoints as the pages use them: every answer is read field by field. */

import { type Json, authorization, count, isRecord, send, text } from "./api";

export interface Percentiles {
  p50: number;
  p90: number;
  p99: number;
}

/** An hour, a day or a whole span. Times and latencies are in milliseconds, money in `Books.currency`; null is unknown. */
export interface Period {
  start: number;
  end: number;
  requests: number;
  interrupted: number;
  input: number;
  hit: number;
  miss: number;
  output: number;
  hitRate: number | null;
  first: Percentiles | null;
  whole: Percentiles | null;
  answerSpeed: number | null;
  inputSpeed: number | null;
  outputSpeed: number | null;
  energy: number | null;
  income: number;
  cost: number;
  margin: number;
  marginRate: number | null;
}

export interface Books {
  by: string;
  currency: string;
  hourlyCost: number;
  total: Period;
  data: Period[];
  otherIncome: Record<string, string>;
  energyNote: string | null;
}

export interface Limits {
  requests_per_minute: number | null;
  tokens_per_minute: number | null;
  concurrent: number | null;
  budget: string | null;
  budget_currency: string;
  budget_period: string;
}

export interface KeyCard {
  id: number;
  name: string;
  prefix: string;
  role: string;
  models: string[] | null;
  /** Seconds since 1970. */
  created: number;
  expires: number | null;
  revoked: number | null;
  limits: Limits;
  /** Of a new key alone. */
  secret: string;
}

export interface AccountCard {
  id: number;
  name: string;
  keys: number;
  balances: { currency: string; total: string; granted: string; topped_up: string }[];
}

export interface Page<T> {
  data: T[];
  more: boolean;
}

export class Desk {
  constructor(private readonly key: () => string) {}

  /** The books of a span in the query, such as { by: "hour", from: "…" }. All methods throw ApiError. */
  async books(query: Record<string, string>): Promise<Books> {
    const answer = await this.get("books", query);
    return {
      by: text(answer["by"]),
      currency: text(answer["currency"]),
      hourlyCost: Number(text(answer["hourly_cost"])),
      total: readPeriod(answer["total"]),
      data: list(answer["data"]).map(readPeriod),
      otherIncome: Object.fromEntries(Object.entries(record(answer["other_income"])).map(([name, value]) => [name, text(value)])),
      energyNote: text(answer["energy_note"]) || null,
    };
  }

  keys(query: Record<string, string>): Promise<Page<KeyCard>> {
    return this.page("keys", query, readKey);
  }

  accounts(query: Record<string, string>): Promise<Page<AccountCard>> {
    return this.page("accounts", query, readAccount);
  }

  usage(query: Record<string, string>): Promise<Page<Json>> {
    return this.page("usage", query, record);
  }

  async addKey(body: Json): Promise<KeyCard> {
    return readKey(await this.post("keys", body));
  }

  async changeKey(id: number, body: Json): Promise<KeyCard> {
    return readKey(await this.post(`keys/${id}`, body));
  }

  async revokeKey(id: number): Promise<void> {
    await this.post(`keys/${id}/revoke`, {});
  }

  async move(account: number, body: Json): Promise<void> {
    await this.post(`accounts/${account}/movements`, body);
  }

  private async page<T>(path: string, query: Record<string, string>, read: (entry: unknown) => T): Promise<Page<T>> {
    const answer = await this.get(path, query);
    return { data: list(answer["data"]).map(read), more: answer["has_more"] === true };
  }

  private get(path: string, query: Record<string, string>): Promise<Json> {
    return this.ask(`admin/${path}?${new URLSearchParams(query).toString()}`, {});
  }

  private post(path: string, body: Json): Promise<Json> {
    const headers = { "Content-Type": "application/json" };
    return this.ask(`admin/${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  }

  private async ask(path: string, init: { method?: string; headers?: Record<string, string>; body?: string }): Promise<Json> {
    const response = await send(path, { ...init, headers: { ...init.headers, ...authorization(this.key()) } });
    return record(await response.json().catch(() => null));
  }
}

function readPeriod(entry: unknown): Period {
  const period = record(entry);
  const of = (name: string): number => count(period[name]);
  const known = (name: string): number | null => (typeof period[name] === "number" ? period[name] : null);
  return {
    start: Date.parse(text(period["start"])) || 0,
    end: Date.parse(text(period["end"])) || 0,
    requests: of("requests"),
    interrupted: of("interrupted"),
    input: of("input"),
    hit: of("hit"),
    miss: of("miss"),
    output: of("output"),
    hitRate: known("hit_rate"),
    first: readPercentiles(period["first_ms"]),
    whole: readPercentiles(period["whole_ms"]),
    answerSpeed: known("answer_speed"),
    inputSpeed: known("input_speed"),
    outputSpeed: known("output_speed"),
    energy: known("energy_wh"),
    income: Number(text(period["income"])),
    cost: Number(text(period["cost"])),
    margin: Number(text(period["margin"])),
    marginRate: known("margin_rate"),
  };
}

function readPercentiles(entry: unknown): Percentiles | null {
  return isRecord(entry) ? { p50: count(entry["p50"]), p90: count(entry["p90"]), p99: count(entry["p99"]) } : null;
}

function readKey(entry: unknown): KeyCard {
  const key = record(entry);
  const limits = record(key["limits"]);
  return {
    id: count(key["id"]),
    name: text(key["name"]),
    prefix: text(key["prefix"]),
    role: text(key["role"]),
    models: Array.isArray(key["models"]) ? key["models"].map(text) : null,
    created: count(key["created"]),
    expires: count(key["expires"]) || null,
    revoked: count(key["revoked"]) || null,
    limits: {
      requests_per_minute: count(limits["requests_per_minute"]) || null,
      tokens_per_minute: count(limits["tokens_per_minute"]) || null,
      concurrent: count(limits["concurrent"]) || null,
      budget: text(limits["budget"]) || null,
      budget_currency: text(limits["budget_currency"]) || "USD",
      budget_period: text(limits["budget_period"]) || "month",
    },
    secret: text(key["key"]),
  };
}

function readAccount(entry: unknown): AccountCard {
  const account = record(entry);
  const balances = list(account["balances"]).map(record);
  return {
    id: count(account["id"]),
    name: text(account["name"]),
    keys: count(account["keys"]),
    balances: balances.map((one) => ({
      currency: text(one["currency"]),
      total: text(one["total"]),
      granted: text(one["granted"]),
      topped_up: text(one["topped_up"]),
    })),
  };
}

const record = (value: unknown): Json => (isRecord(value) ? value : {});
const list = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);
