import { describe, expect, test } from "vitest";

import { append, branch, emptyConversation, merge, requestMessages, show, siblings, unfinished } from "../src/conversation";
import { readExport } from "../src/exports";

const texts = (messages: { text: string }[]): string[] => messages.map(({ text }) => text);

function talk() {
  const conversation = emptyConversation(0);
  const asked = append(conversation, null, { role: "user", text: "hello\nthere" }, 1);
  const first = append(conversation, asked.id, { role: "assistant", text: "one", end: "stop" }, 2);
  const second = append(conversation, asked.id, { role: "assistant", text: "two", end: "stop" }, 3);
  return { conversation, asked, first, second };
}

describe("a conversation", () => {
  test("is named after its first line", () => expect(talk().conversation.title).toBe("hello"));

  test("keeps every version and shows the chosen branch to its newest end", () => {
    const { conversation, first, second } = talk();
    const deeper = append(conversation, second.id, { role: "user", text: "go on" }, 4);
    expect(texts(branch(conversation))).toEqual(["hello\nthere", "two", "go on"]);
    expect(siblings(conversation, first)).toEqual([first, second]);
    show(conversation, first.id);
    expect(texts(branch(conversation))).toEqual(["hello\nthere", "one"]);
    show(conversation, second.id);
    expect(conversation.leaf).toBe(deeper.id);
  });

  test("sends the branch up to the question, with the system prompt and without failed answers", () => {
    const { conversation, asked } = talk();
    const failed = append(conversation, asked.id, { role: "assistant", text: "", end: "error" }, 5);
    const next = append(conversation, failed.id, { role: "user", text: "again" }, 6);
    expect(requestMessages(conversation, next, "Be brief.")).toEqual([
      { role: "system", content: "Be brief." },
      { role: "user", content: "hello\nthere" },
      { role: "user", content: "again" },
    ]);
    expect(requestMessages(conversation, asked, " ")).toHaveLength(1);
  });

  test("leaves failed answers without a word out of the alternatives", () => {
    const { conversation, asked, first, second } = talk();
    const failed = append(conversation, asked.id, { role: "assistant", text: "", end: "error" }, 5);
    expect(siblings(conversation, first)).toEqual([first, second]);
    expect(siblings(conversation, failed)).toEqual([first, second, failed]);
    show(conversation, asked.id);
    expect(conversation.leaf).toBe(second.id);
  });

  test("asks to go on with an answer, or with its thought", () => {
    const { second } = talk();
    expect(unfinished(second)).toEqual({ role: "assistant", content: "two", prefix: true });
    expect(unfinished({ ...second, text: "", reasoning: "hm" })).toMatchObject({ content: "", reasoning_content: "hm", prefix: true });
  });

  test("does not go round for ever on a broken chain", () => {
    const { conversation, asked, first } = talk();
    asked.parent = first.id;
    conversation.messages = [asked, first];
    show(conversation, first.id);
    expect(branch(conversation).length).toBeLessThanOrEqual(3);
  });
});

describe("what another tab saved", () => {
  test("is added, and what is here stays", () => {
    const { conversation, second } = talk();
    const saved = structuredClone(conversation);
    const theirs = append(saved, second.id, { role: "user", text: "from the other tab" }, 4);
    saved.title = "renamed";
    const mine = append(conversation, second.id, { role: "user", text: "from here" }, 5);
    merge(conversation, saved);
    expect(conversation.messages.map(({ id }) => id)).toEqual(expect.arrayContaining([theirs.id, mine.id]));
    expect([conversation.title, conversation.leaf]).toEqual(["renamed", mine.id]);
  });

  test("is followed when it goes on from the message on show", () => {
    const { conversation, second } = talk();
    const saved = structuredClone(conversation);
    const next = append(saved, second.id, { role: "user", text: "go on" }, 4);
    merge(conversation, saved);
    expect(conversation.leaf).toBe(next.id);
  });

  test("replaces an older copy, never a newer one", () => {
    const { conversation, first, second } = talk();
    [first.revision, second.revision] = [2, 2];
    const saved = structuredClone(conversation);
    Object.assign(saved.messages[1]!, { text: "older", revision: 1 });
    Object.assign(saved.messages[2]!, { text: "newer", revision: 3 });
    merge(conversation, saved);
    expect(texts(conversation.messages)).toEqual(["hello\nthere", "one", "newer"]);
  });
});

describe("an export", () => {
  test("comes back under new ids", () => {
    const { conversation } = talk();
    const [back] = readExport(JSON.stringify({ conversations: [conversation] }));
    expect(back).toEqual({ ...conversation, id: back?.id });
    expect(back?.id).not.toBe(conversation.id);
  });

  test("of the time before messages had an order keeps it, and ends what was running", () => {
    const { conversation, second } = talk();
    delete second.end;
    const old = { ...conversation, messages: conversation.messages.map(({ at: _, ...message }) => message) };
    const messages = readExport(JSON.stringify({ conversations: [old] }))[0]?.messages ?? [];
    expect(messages.map(({ at, end }) => [at, end])).toEqual([[0, undefined], [1, "stop"], [2, "cut"]]);
  });

  test.each(["", "[]", "{}", '{"conversations":[1]}', '{"conversations":[{"title":"x"}]}'])("of another kind is refused: %s", (json) => {
    expect(() => readExport(json)).toThrow("not an export");
  });
});
