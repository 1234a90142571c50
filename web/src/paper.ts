/** What the pages beside the chat share: their head, their key, and what they say when the server refuses. */

import { ApiError } from "./api";
import { Desk } from "./desk";
import { byId } from "./dom";
import { Key, askForKey } from "./key";
import { banner, notice } from "./notices";
import { themeButton } from "./theme";

export class Paper {
  readonly key = new Key();
  readonly desk = new Desk(() => this.key.value);

  /** `load` shows the page's contents; it is called again whenever that may help. */
  constructor(private readonly load: () => Promise<void>) {
    themeButton(byId<HTMLButtonElement>("theme"));
    byId("key").addEventListener("click", () => askForKey(this.key, "The key of an administrator.", () => void this.show()));
  }

  /** Loads, and says what went wrong: nothing is thrown. */
  async show(): Promise<void> {
    await this.attempt(() => this.load());
  }

  /** Runs something that asks the server. False: it did not work, and the page says why. */
  async attempt(run: () => Promise<void>): Promise<boolean> {
    try {
      await run();
      banner(null);
      return true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      const again = { label: "Try again", run: () => void this.show() };
      const other = { label: "Use another key", run: () => this.ask(error.message) };
      banner(notice("error", error.message, ...(error.status === 401 || error.status === 403 ? [other] : [again])));
      if (error.status === 401) this.ask(error.message);
      return false;
    }
  }

  private ask(why: string): void {
    askForKey(this.key, why, () => void this.show());
  }
}

/** Gives the browser a file to keep. */
export function download(name: string, text: string, type = "text/csv"): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
