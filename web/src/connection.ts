/** Whether the server answers, and which models it offers. Asks again by itself only while it does not. */

import { ApiError, type Model, listModels } from "./api";

export type State = "connecting" | "online" | "offline" | "refused";

const FIRST_DELAY_MS = 1000;
const LAST_DELAY_MS = 8000;

export class Connection {
  state: State = "connecting";
  models: Model[] = [];
  /** Why the server refuses, when it does, and with which status. */
  reason = "";
  status = 0;
  private delay = FIRST_DELAY_MS;
  private timer = 0;

  constructor(
    private readonly key: () => string,
    private readonly changed: () => void,
  ) {
    addEventListener("online", () => void this.check());
    addEventListener("offline", () => void this.check());
  }

  /** Asks now. Never throws: the answer is in `state`. */
  async check(): Promise<void> {
    clearTimeout(this.timer);
    try {
      this.models = await listModels(this.key());
      this.state = "online";
      this.delay = FIRST_DELAY_MS;
    } catch (error) {
      const refused = error instanceof ApiError && error.kind === "refused";
      this.state = refused ? "refused" : "offline";
      this.status = error instanceof ApiError ? error.status : 0;
      this.reason = error instanceof Error ? error.message : String(error);
      this.timer = window.setTimeout(() => void this.check(), this.delay);
      this.delay = Math.min(this.delay * 2, LAST_DELAY_MS);
    }
    this.changed();
  }
}
