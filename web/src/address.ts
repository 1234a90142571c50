/** What the address shows: `#/chat/ID` a chat, `#/chat` a new one, `#/complete` the Complete mode. */

export type Place = { mode: "chat"; chat: string | null } | { mode: "complete" };

/** Null for an address that says nothing, such as a bare one. */
export function readAddress(hash: string): Place | null {
  if (hash === "#/complete") return { mode: "complete" };
  const found = /^#\/chat(?:\/([\w-]+))?$/.exec(hash);
  return found ? { mode: "chat", chat: found[1] ?? null } : null;
}

export function writeAddress(place: Place): string {
  if (place.mode === "complete") return "#/complete";
  return place.chat === null ? "#/chat" : `#/chat/${place.chat}`;
}
