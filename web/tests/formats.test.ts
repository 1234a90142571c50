import { describe, expect, it } from "vitest";

import { compact, csv, duration, marks, money, percent } from "../src/formats";

describe("numbers", () => {
  it.each([[0, "0"], [950, "950"], [999.7, "1k"], [1234, "1.23k"], [608e9, "608B"], [-1500, "-1.5k"], [0.25, "0.25"], [5e15, "5000T"]])(
    "%s is %s", (value, said) => expect(compact(value)).toBe(said));

  it("have units", () => {
    expect(percent(0.563)).toBe("56.3 %");
    expect(percent(5.45)).toBe("545 %");
    expect(duration(850)).toBe("850 ms");
    expect(duration(130_000)).toBe("130 s");
    expect(money(562027, "USD")).toBe("562,027 USD");
    expect(money(0.000014, "CNY")).toBe("0.000014 CNY");
  });
});

describe("marks of an axis", () => {
  it.each([[0, 10], [0, 0], [-3, 7], [0, 0.000031], [-5, -1], [0, 6e11]])("hold %s to %s in a handful of round steps", (least, most) => {
    const found = marks(least, most);
    expect(found[0]).toBeLessThanOrEqual(least);
    expect(found.at(-1)).toBeGreaterThanOrEqual(most);
    expect(found).toContain(0);
    expect(found.length).toBeGreaterThan(1);
    expect(found.length).toBeLessThan(8);
  });
});

describe("CSV", () => {
  it("quotes what needs it, and is no formula", () => {
    expect(csv([["a,b", 'say "x"', null, -1.5], ["=HYPERLINK(1)", "-2.50", "@x", "+y"]])).toBe(
      '"a,b","say ""x""",,-1.5\r\n\'=HYPERLINK(1),-2.50,\'@x,\'+y\r\n');
  });
});
