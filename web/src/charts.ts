/** Charts over time as SVG, each with its table: bars on top of each other, and lines. */

import { h, s } from "./dom";
import { marks } from "./formats";
import { pagedTable } from "./table";

export interface Series {
  name: string;
  kind: "bar" | "line";
  /** One value a period; null where there is none. */
  values: readonly (number | null)[];
}

export interface Chart {
  title: string;
  /** One a period: in full, and for the axis. */
  labels: readonly string[];
  short: readonly string[];
  /** At most four: each has a colour of its own. */
  series: readonly Series[];
  say: (value: number) => string;
  /** For the axis, where `say` is too long. */
  mark?: (value: number) => string;
  /** Said below the chart. */
  note?: string;
}

const HEIGHT = 190;
const TOP = 8;
const BOTTOM = 22;
const LEFT = 52;
/** Pixels of an axis for one label. */
const ROOM = 56;

export function chartView(chart: Chart): HTMLElement {
  const legend = h("ul", { class: "legend" }, ...chart.series.map(({ name }, at) => h("li", { class: `tone-${at + 1}` }, name)));
  const plot = new Plot(chart);
  const details = h("details", {}, h("summary", {}, "As a table"));
  // A table of a thousand rows is made when it is wanted.
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(tableOf(chart));
  });
  return h("figure", { class: "chart" }, h("figcaption", {}, h("h2", {}, chart.title), legend), plot.element,
    chart.note ? h("p", { class: "hint" }, chart.note) : null, details);
}

function tableOf({ title, labels, series, say }: Chart): HTMLElement {
  const heads = [{ label: "From (UTC)" }, ...series.map(({ name }) => ({ label: name, number: true as const }))];
  const rows = labels.map((label, at) => [label, ...series.map(({ values }) => said(values[at] ?? null, say))]);
  return pagedTable(title, heads, rows);
}

function said(value: number | null, say: (value: number) => string): string {
  return value === null ? "–" : say(value);
}

class Plot {
  readonly element: HTMLElement;
  private readonly place = h("div", {});
  private readonly tip = h("div", { class: "tip", hidden: true });
  private readonly scale: number[];
  private width = 0;
  private at = -1;
  private shade: SVGElement | null = null;

  constructor(private readonly chart: Chart) {
    const tops = chart.labels.map((_, at) => this.stack(at));
    const values = [...tops, ...chart.series.flatMap(({ kind, values }) => (kind === "line" ? values : []))].filter((value) => value !== null);
    this.scale = marks(values.reduce((a, b) => Math.min(a, b), 0), values.reduce((a, b) => Math.max(a, b), 0));
    const label = `${chart.title}, a chart; arrow keys read its values, the table below has them all`;
    this.element = h("div", { class: "plot", tabindex: "0", role: "img", "aria-label": label }, this.place, this.tip);
    this.element.addEventListener("pointermove", (event) => this.point(event));
    this.element.addEventListener("pointerdown", (event) => this.point(event));
    this.element.addEventListener("pointerleave", () => this.show(-1));
    this.element.addEventListener("blur", () => this.show(-1));
    this.element.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.fit()).observe(this.element);
  }

  /** The height of the bars of a period. */
  private stack(at: number): number {
    return this.chart.series.reduce((sum, { kind, values }) => sum + (kind === "bar" ? (values[at] ?? 0) : 0), 0);
  }

  private fit(): void {
    const width = Math.floor(this.element.clientWidth);
    if (width === this.width || width < LEFT + ROOM) return;
    this.width = width;
    this.shade = s("rect", { class: "shade", y: TOP, height: HEIGHT - TOP - BOTTOM, width: this.step, visibility: "hidden" });
    const svg = s("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" },
      ...this.axes(), this.shade, ...this.chart.series.flatMap((series, at) => (series.kind === "bar" ? this.bars(at) : [])),
      ...this.chart.series.flatMap((series, at) => (series.kind === "line" ? this.line(series, at) : [])));
    this.place.replaceChildren(svg);
  }

  private get step(): number {
    return (this.width - LEFT) / Math.max(1, this.chart.labels.length);
  }

  private x(at: number): number {
    return LEFT + at * this.step;
  }

  private y(value: number): number {
    const [low, high] = [this.scale[0] ?? 0, this.scale.at(-1) ?? 1];
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low));
  }

  private axes(): SVGElement[] {
    const across = this.scale.flatMap((value) => [
      s("line", { class: value === 0 ? "zero" : "grid", x1: LEFT, x2: this.width, y1: this.y(value), y2: this.y(value) }),
      text((this.chart.mark ?? this.chart.say)(value), LEFT - 6, this.y(value) + 4, "end"),
    ]);
    const every = Math.max(1, Math.ceil(ROOM / this.step));
    const along = this.chart.short.flatMap((label, at) =>
      at % every === 0 && this.x(at) + ROOM / 2 < this.width ? [text(label, this.x(at) + this.step / 2, HEIGHT - 5, "middle")] : []);
    return [...across, ...along];
  }

  private bars(which: number): SVGElement[] {
    const gap = this.step > 6 ? 2 : this.step > 3 ? 1 : 0;
    const below = this.chart.series.slice(0, which).filter(({ kind }) => kind === "bar");
    return this.chart.labels.flatMap((_, at) => {
      const value = this.chart.series[which]?.values[at] ?? 0;
      if (value === 0) return [];
      const from = below.reduce((sum, { values }) => sum + (values[at] ?? 0), 0);
      const [y1, y2] = [this.y(from + value), this.y(from)];
      return [s("rect", { class: `bar tone-${which + 1}`, x: this.x(at) + gap / 2, width: this.step - gap, y: y1, height: Math.max(1, y2 - y1) })];
    });
  }

  /** A line is broken where there is no value; a value alone is a dot. */
  private line({ values }: Series, which: number): SVGElement[] {
    const place = (at: number): string => `${(this.x(at) + this.step / 2).toFixed(1)} ${this.y(values[at] ?? 0).toFixed(1)}`;
    const known = (at: number): boolean => (values[at] ?? null) !== null;
    const path = values.map((_, at) => (known(at) ? `${at > 0 && known(at - 1) ? "L" : "M"}${place(at)}` : "")).join("");
    const alone = values.flatMap((value, at) => (value !== null && !(at > 0 && known(at - 1)) && !known(at + 1)
      ? [s("circle", { class: `dot tone-${which + 1}`, cx: this.x(at) + this.step / 2, cy: this.y(value), r: 3 })] : []));
    return [s("path", { class: `line tone-${which + 1}`, d: path }), ...alone];
  }

  private point(event: PointerEvent): void {
    const at = Math.floor((event.clientX - this.element.getBoundingClientRect().left - LEFT) / this.step);
    this.show(at >= 0 && at < this.chart.labels.length ? at : -1);
  }

  private key(event: KeyboardEvent): void {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.show(Math.min(this.chart.labels.length - 1, Math.max(0, this.at + step)));
    this.element.setAttribute("aria-label", this.tip.innerText);
  }

  private show(at: number): void {
    this.at = at;
    this.tip.hidden = at < 0;
    this.shade?.setAttribute("visibility", at < 0 ? "hidden" : "visible");
    if (at < 0) return;
    this.shade?.setAttribute("x", String(this.x(at)));
    const { labels, series, say } = this.chart;
    const lines = series.map(({ name, values }, which) => h("div", { class: `tone-${which + 1}` }, `${name}: ${said(values[at] ?? null, say)}`));
    this.tip.replaceChildren(h("b", {}, labels[at] ?? ""), ...lines);
    const left = Math.min(this.x(at) + this.step + 8, this.width - this.tip.offsetWidth);
    this.tip.style.left = `${Math.max(0, left)}px`;
  }
}

function text(words: string, x: number, y: number, anchor: "end" | "middle"): SVGElement {
  const element = s("text", { x, y, "text-anchor": anchor });
  element.textContent = words;
  return element;
}
