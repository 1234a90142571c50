import { beforeEach, describe, expect, it } from "vitest";

import { Key } from "../src/key";

describe("the key", () => {
  beforeEach(() => {
    localStorage.clear();
    sessionStorage.clear();
  });

  it("is forgotten with the tab unless it is to be remembered", () => {
    const key = new Key();
    key.keep("sk-a", false);
    expect([key.value, key.remembered, localStorage.length]).toEqual(["sk-a", false, 0]);
    key.keep("sk-b", true);
    expect([key.value, key.remembered, sessionStorage.length]).toEqual(["sk-b", true, 0]);
    key.keep("", true);
    expect([key.value, localStorage.length, sessionStorage.length]).toEqual(["", 0, 0]);
  });

  it("moves out of the settings where it was before", () => {
    localStorage.setItem("deepwell.settings", JSON.stringify({ apiKey: "sk-old", model: "m" }));
    const key = new Key();
    expect([key.value, key.remembered]).toEqual(["sk-old", true]);
    expect(localStorage.getItem("deepwell.settings")).toBe('{"model":"m"}');
  });

  it("is none where what is kept cannot be read", () => {
    localStorage.setItem("deepwell.settings", "{");
    expect(new Key().value).toBe("");
  });
});
