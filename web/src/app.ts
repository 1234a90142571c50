/** What the parts of the page share. */

import type { Model } from "./api";
import { Connection } from "./connection";
import { Drafts } from "./drafts";
import type { History } from "./history";
import { type Settings, loadSettings, saveSettings } from "./settings";

export class App {
  readonly settings: Settings = loadSettings(localStorageOrNothing());
  readonly connection: Connection;
  readonly drafts = new Drafts(localStorageOrNothing(), sessionStorageOrNothing());

  constructor(
    readonly history: History,
    connectionChanged: () => void,
  ) {
    this.connection = new Connection(() => this.settings.apiKey, connectionChanged);
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

  saveSettings(): void {
    saveSettings(localStorageOrNothing(), this.settings);
  }
}

type Store = Pick<Storage, "getItem" | "setItem" | "removeItem" | "key" | "length">;

export function localStorageOrNothing(): Store {
  return orNothing(() => localStorage);
}

export function sessionStorageOrNothing(): Store {
  return orNothing(() => sessionStorage);
}

/** Naming a storage throws where storage is blocked. */
function orNothing(storage: () => Store): Store {
  try {
    return storage();
  } catch {
    return { getItem: () => null, setItem: () => undefined, removeItem: () => undefined, key: () => null, length: 0 };
  }
}
