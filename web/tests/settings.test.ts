import { describe, expect, test } from "vitest";

import { Meter, describe as words } from "../src/meter";
import { DEFAULTS, FIELDS, loadSettings, ownValues, problem, sampling } from "../src/settings";

const field = (key: string) => FIELDS.find((each) => each.key === key)!;

describe("a setting", () => {
  test.each([
    ["temperature", "0"], ["temperature", "2"], ["top_p", "1"], ["max_tokens", "1"], ["seed", "0"], ["min_p", "1"],
    ["presence_penalty", "-2"], ["temperature", ""],
  ])("%s may be %j", (key, typed) => expect(problem(field(key), typed)).toBeNull());

  test.each([
    ["temperature", "2.1"], ["temperature", "-0.1"], ["temperature", "warm"], ["temperature", "0,5"], ["top_p", "0"],
    ["max_tokens", "0"], ["max_tokens", "1.5"], ["seed", "-1"], ["seed", "9007199254740992"], ["temperature", "Infinity"],
  ])("%s may not be %j", (key, typed) => expect(problem(field(key), typed)).toContain(field(key).label));

  test("takes at most 16 stop texts", () => {
    expect(problem(field("stop"), "a\n".repeat(16))).toBeNull();
    expect(problem(field("stop"), "a\n".repeat(17))).toContain("16");
  });
});

test("only filled and right fields are sent", () => {
  const typed = { temperature: "0.5", top_p: "", max_tokens: "none", seed: "7", stop: "END\n\\n\\n\n" };
  expect(sampling(typed, {})).toEqual({ temperature: 0.5, seed: 7, stop: ["END", "\n\n"] });
  expect(sampling(typed, { temperature: 0.1, top_p: 0.9 })).toMatchObject({ temperature: 0.5, top_p: 0.9 });
});

test("the page has values of its own only where the model's files advise nothing", () => {
  for (const mode of ["chat", "complete"] as const) {
    expect(ownValues(mode, { top_k: 20 })).toEqual({});
    expect(ownValues(mode, null)["temperature"]).toBeLessThan(0.5);
  }
});

test("settings that cannot be read fall back to the defaults", () => {
  expect(loadSettings({ getItem: () => "{broken" })).toEqual(DEFAULTS);
  expect(loadSettings({ getItem: () => '{"system":"x"}' })).toEqual({ ...DEFAULTS, system: "x" });
});

test("the meter counts from the first token to the last", () => {
  const meter = new Meter(1000);
  for (const at of [1200, 1700, 2200]) meter.piece(at);
  const stats = meter.stats({ prompt: 96, hit: 64, completion: 21 });
  expect(stats).toMatchObject({ first: 200, rate: 20, tokens: 21, exact: true });
  expect(words(stats).map(({ label }) => label)).toEqual(["20.0 tokens/s", "21 tokens", "first after 200 ms", "prompt 96, 64 from cache"]);
  expect(words(meter.stats(null)).map(({ label }) => label)).toEqual(["~2.0 tokens/s", "~3 tokens", "first after 200 ms"]);
  expect(new Meter(0).stats(null)).toMatchObject({ first: null, rate: null, tokens: 0 });
  expect(words(new Meter(0).stats(null))).toEqual([]);
});
