/** Numbers, money and times as short texts, and the marks of an axis. Pure functions; all times are UTC. */

/** 950, 12.3k, 4.56M, 608B: three digits at most. */
export function compact(value: number): string {
  const sign = value < 0 ? "-" : "";
  let size = Math.abs(value);
  for (const suffix of ["", "k", "M", "B", "T"]) {
    const rounded = Number(size.toPrecision(3));
    if (rounded < 1000 || suffix === "T") return sign + (suffix === "" && Number.isInteger(size) ? String(size) : String(rounded)) + suffix;
    size /= 1000;
  }
  return String(value);
}

/** 1,234,567 */
export function grouped(value: number): string {
  return value.toLocaleString("en", { maximumFractionDigits: 3 });
}

export function percent(share: number): string {
  return `${Number((share * 100).toPrecision(3))} %`;
}

/** 850 ms, 1.25 s, 130 s */
export function duration(milliseconds: number): string {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${Number((milliseconds / 1000).toPrecision(3))} s`;
}

export function money(amount: number, currency: string): string {
  const size = Math.abs(amount);
  const digits = size >= 10_000 ? 0 : 2;
  const said = amount.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return `${size < 1 && amount !== 0 ? Number(amount.toPrecision(3)) : said} ${currency}`;
}

/** 2026-01-31 */
export function day(milliseconds: number): string {
  return new Date(milliseconds).toISOString().slice(0, 10);
}

/** 12:00 */
export function hour(milliseconds: number): string {
  return new Date(milliseconds).toISOString().slice(11, 16);
}

/** Round numbers from 0 or below to `most` or above, a handful of them. */
export function marks(least: number, most: number): number[] {
  const low = Math.min(0, least);
  const span = Math.max(most, 0) - low || 1;
  const rough = span / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999) ?? 10) * power;
  const first = Math.floor(low / step);
  const last = Math.max(first + 1, Math.ceil(Math.max(most, 0) / step - 1e-9));
  return Array.from({ length: last - first + 1 }, (_, at) => Number(((first + at) * step).toPrecision(12)));
}

/** Rows as CSV. A text that a spreadsheet would take for a formula gets a quote before it. */
export function csv(rows: readonly (readonly (string | number | null)[])[]): string {
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function cell(value: string | number | null): string {
  if (value === null) return "";
  if (typeof value === "number") return String(value);
  const safe = /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
