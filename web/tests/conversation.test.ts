import { describe, expect, test } from "vitest";

import { append, branch, dropLeaf, emptyConversation, requestMessages, settle, show, siblings } from "../src/conversation";
import { readExport } from "../src/history";

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

  test("drops a leaf and shows its parent", () => {
    const { conversation, asked, second } = talk();
    dropLeaf(conversation, second);
    expect(conversation.leaf).toBe(asked.id);
    expect(conversation.messages).toHaveLength(2);
  });

  test("does not go round for ever on a broken chain", () => {
    const { conversation, asked, first } = talk();
    asked.parent = first.id;
    conversation.messages = [asked, first];
    show(conversation, first.id);
    expect(branch(conversation).length).toBeLessThanOrEqual(3);
  });

  test("marks answers cut off by a reload", () => {
    const { conversation, second } = talk();
    delete second.end;
    expect(settle(conversation).messages.at(-1)?.end).toBe("cut");
  });
});

describe("an export", () => {
  test("comes back under new ids", () => {
    const { conversation } = talk();
    const [back] = readExport(JSON.stringify({ conversations: [conversation] }));
    expect(back).toEqual({ ...conversation, id: back?.id });
    expect(back?.id).not.toBe(conversation.id);
  });

  test.each(["", "[]", "{}", '{"conversations":[1]}', '{"conversations":[{"title":"x"}]}'])("of another kind is refused: %s", (json) => {
    expect(() => readExport(json)).toThrow("not an export");
  });
});
