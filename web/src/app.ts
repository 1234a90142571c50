/** What the parts of the page share. */

import type { Model } from "./api";
import { Connection } from "./connection";
import { Drafts } from "./drafts";
import type { History } from "./history";
import { Key, askForKey } from "./key";
import { type Settings, loadSettings, saveSettings } from "./settings";
import { localStorageOrNothing, sessionStorageOrNothing } from "./storage";

export class App {
  readonly key = new Key();
  readonly settings: Settings = loadSettings(localStorageOrNothing());
  readonly connection: Connection;
  readonly drafts = new Drafts(localStorageOrNothing(), sessionStorageOrNothing());

  constructor(
    readonly history: History,
    connectionChanged: () => void,
  ) {
    this.connection = new Connection(() => this.key.value, connectionChanged);
    this.drafts.prune(history.conversations);
  }

  /** The chosen model if the server still offers it, otherwise its first. */
  get model(): Model | null {
    const { models } = this.connection;
    return models.find((model) => model.id === this.settings.model) ?? models[0] ?? null;
  }

  /** The model's name, asking the server once more if it was not known. Empty when it cannot be reached. */
  async modelName(): Promise<string> {
    if (!this.model) await this.connection.check();
    return this.model?.id ?? "";
  }

  /** Asks for a key that the server takes; `why` is what it said. */
  askForKey(why: string): void {
    askForKey(this.key, why, () => void this.connection.check());
  }

  saveSettings(): void {
    saveSettings(localStorageOrNothing(), this.settings);
  }
}
