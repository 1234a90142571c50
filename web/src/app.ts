/** What the parts of the page share. */

import type { Model } from "./api";
import { Connection } from "./connection";
import type { History } from "./history";
import { type Settings, loadSettings, saveSettings } from "./settings";

export class App {
  readonly settings: Settings = loadSettings(localStorageOrNothing());
  readonly connection: Connection;

  constructor(
    readonly history: History,
    connectionChanged: () => void,
  ) {
    this.connection = new Connection(() => this.settings.apiKey, connectionChanged);
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

  saveSettings(): void {
    saveSettings(localStorageOrNothing(), this.settings);
  }
}

/** Reading `localStorage` itself throws where storage is blocked. */
export function localStorageOrNothing(): Pick<Storage, "getItem" | "setItem" | "removeItem"> {
  try {
    return localStorage;
  } catch {
    return { getItem: () => null, setItem: () => undefined, removeItem: () => undefined };
  }
}
