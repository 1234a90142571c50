/** The books page: what the server was asked, found and answered, how fast, and what it would earn, hour by hour. */

import "./style/base.css";
import "./style/forms.css";
import "./style/thread.css";
import "./style/layout.css";
import "./style/paper.css";

import { type Chart, type Series, chartView } from "./charts";
import type { Books, Percentiles, Period } from "./desk";
import { byId, h } from "./dom";
import { compact, csv, day, duration, grouped, hour, money, percent } from "./formats";
import { Paper, download } from "./paper";

const HOUR = 3_600_000;
const REFRESH_MS = 60_000;

const SPANS: Record<string, { label: string; by: "hour" | "day"; hours: number }> = {
  day: { label: "24 hours", by: "hour", hours: 24 },
  week: { label: "7 days", by: "hour", hours: 24 * 7 },
  month: { label: "30 days", by: "day", hours: 24 * 30 },
  year: { label: "a year", by: "day", hours: 24 * 365 },
};

const paper = new Paper(load);
const span = byId<HTMLSelectElement>("span");
const date = byId<HTMLInputElement>("date");
let shown: Books | null = null;

async function load(): Promise<void> {
  const books = await paper.desk.books(query());
  shown = books;
  byId("tiles").replaceChildren(...tiles(books).map(tile));
  byId("charts").replaceChildren(...charts(books).map(chartView));
  const others = Object.entries(books.otherIncome).map(([currency, amount]) => `${amount} ${currency}`);
  byId("notes").replaceChildren(...[
    others.length > 0 ? `Income of other currencies is not in these sums: ${others.join(", ")}.` : null,
    books.energyNote,
  ].filter((said) => said !== null).map((said) => h("p", { class: "hint" }, said)));
  byId<HTMLButtonElement>("csv").disabled = books.data.length === 0;
}

/** The span until now, or the day that was chosen. */
function query(): Record<string, string> {
  const chosen = SPANS[span.value];
  const until = chosen ? Date.now() : Date.parse(`${date.value || day(Date.now())}T00:00Z`) + 24 * HOUR;
  const { by, hours } = chosen ?? { by: "hour", hours: 24 };
  const end = Math.ceil(until / HOUR) * HOUR;
  return { by, from: new Date(end - hours * HOUR).toISOString(), until: new Date(end).toISOString() };
}

interface Tile {
  name: string;
  value: string;
  more: string;
}

function tiles({ total, currency, energyNote, hourlyCost }: Books): Tile[] {
  const known = <T>(value: T | null, say: (value: T) => string): string => (value === null ? "–" : say(value));
  const tail = (of: Percentiles | null): string => (of ? `99 % within ${duration(of.p99)}` : "");
  return [
    { name: "Tokens in", value: compact(total.input), more: `${compact(total.hit)} from the cache` },
    { name: "Cache hit rate", value: known(total.hitRate, percent), more: `${compact(total.miss)} computed` },
    { name: "Tokens out", value: compact(total.output), more: `${known(total.outputSpeed, compact)} a second` },
    { name: "Requests", value: grouped(total.requests), more: total.interrupted ? `${total.interrupted} interrupted` : "" },
    { name: "Speed of an answer", value: known(total.answerSpeed, compact), more: "tokens a second" },
    { name: "First token after", value: known(total.first, ({ p50 }) => duration(p50)), more: tail(total.first) },
    { name: "Whole answer after", value: known(total.whole, ({ p50 }) => duration(p50)), more: tail(total.whole) },
    { name: "Energy", value: known(total.energy, watts), more: energyNote ? "not reported by this machine" : "of the processors" },
    { name: "Theoretical income", value: money(total.income, currency), more: "by the table of prices" },
    { name: "Cost", value: money(total.cost, currency), more: hourlyCost ? `${money(hourlyCost, currency)} an hour` : "no hourly cost is set" },
    { name: "Margin", value: money(total.margin, currency), more: known(total.marginRate, (rate) => `${percent(rate)} of the cost`) },
  ];
}

function tile({ name, value, more }: Tile): HTMLElement {
  return h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, h("b", {}, value), h("span", { class: "hint" }, more)));
}

function charts({ by, data, currency, energyNote }: Books): Chart[] {
  const labels = data.map(({ start }) => (by === "day" ? day(start) : `${day(start)} ${hour(start)}`));
  const short = data.map(({ start }) => (by === "day" || data.length > 48 ? day(start).slice(5) : hour(start)));
  const of = (name: string, kind: Series["kind"], value: (period: Period) => number | null): Series => ({ name, kind, values: data.map(value) });
  const tail = (pick: (period: Period) => Percentiles | null): Series[] => [
    of("half within", "line", (period) => pick(period)?.p50 ?? null),
    of("90 % within", "line", (period) => pick(period)?.p90 ?? null),
    of("99 % within", "line", (period) => pick(period)?.p99 ?? null),
  ];
  const chart = (title: string, say: Chart["say"], ...series: Series[]): Chart => ({ title, labels, short, series, say });
  return [
    chart("Tokens", compact,
      of("in, from the cache", "bar", ({ hit }) => hit),
      of("in, computed", "bar", ({ miss }) => miss),
      of("out", "bar", ({ output }) => output)),
    chart("Cache hit rate", percent, of("share of tokens in", "line", ({ hitRate }) => hitRate)),
    chart("Requests", compact, of("requests", "bar", ({ requests }) => requests), of("interrupted", "line", ({ interrupted }) => interrupted || null)),
    chart("Tokens a second, whole server", compact, of("in", "line", ({ inputSpeed }) => inputSpeed), of("out", "line", ({ outputSpeed }) => outputSpeed)),
    chart("Tokens a second, one answer", compact, of("after its first token", "line", ({ answerSpeed }) => answerSpeed)),
    chart("Time to the first token", duration, ...tail(({ first }) => first)),
    chart("Time to the whole answer", duration, ...tail(({ whole }) => whole)),
    {
      ...chart("Income and cost", (value) => money(value, currency),
        of("theoretical income", "bar", ({ income }) => income),
        of("cost", "line", ({ cost }) => cost),
        of("margin", "line", ({ margin }) => margin)),
      mark: compact,
    },
    ...(energyNote === null ? [chart("Energy", watts, of("energy", "bar", ({ energy }) => energy))] : []),
  ];
}

function watts(hours: number): string {
  return `${compact(hours)}Wh`;
}

function save({ data, currency, by }: Books): void {
  const columns: [string, (period: Period) => string | number | null][] = [
    ["start", ({ start }) => new Date(start).toISOString()],
    ["end", ({ end }) => new Date(end).toISOString()],
    ...(["requests", "interrupted", "input", "hit", "miss", "output", "hitRate", "answerSpeed", "inputSpeed", "outputSpeed"] as const).map(
      (name): [string, (period: Period) => number | null] => [name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), (period) => period[name]]),
    ...(["first", "whole"] as const).flatMap((name) => (["p50", "p90", "p99"] as const).map(
      (rank): [string, (period: Period) => number | null] => [`${name}_ms_${rank}`, (period) => period[name]?.[rank] ?? null])),
    ["energy_wh", ({ energy }) => energy],
    ["income", ({ income }) => income],
    ["cost", ({ cost }) => cost],
    ["margin", ({ margin }) => margin],
    ["currency", () => currency],
  ];
  const name = `books-${day(data[0]?.start ?? 0)}-by-${by}.csv`;
  download(name, csv([columns.map(([head]) => head), ...data.map((period) => columns.map(([, value]) => value(period)))]));
}

/** The span is part of the address, so that it can be kept and sent. */
function choose(): void {
  date.hidden = span.value in SPANS;
  if (!date.hidden && !date.value) date.value = day(Date.now());
  history.replaceState(null, "", span.value in SPANS ? `#${span.value}` : `#${date.value}`);
  void paper.show();
}

span.append(...Object.entries(SPANS).map(([value, { label }]) => h("option", { value }, label)), h("option", { value: "date" }, "one day"));
const asked = location.hash.slice(1);
if (asked in SPANS) span.value = asked;
else if (/^\d{4}-\d\d-\d\d$/.test(asked) && !Number.isNaN(Date.parse(asked))) {
  span.value = "date";
  date.value = asked;
}
span.addEventListener("change", choose);
date.addEventListener("change", choose);
byId("csv").addEventListener("click", () => shown && save(shown));
choose();
setInterval(() => {
  // Not under somebody's hands: an open table or a chart that is being read would be gone.
  const busy = document.activeElement?.closest("#charts") || document.querySelector("#charts details[open], dialog[open], .tip:not([hidden])");
  if (document.visibilityState === "visible" && !busy) void paper.show();
}, REFRESH_MS);
