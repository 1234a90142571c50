/** The browser's storages, or ones that keep nothing where they are blocked. */

export type Store = Pick<Storage, "getItem" | "setItem" | "removeItem" | "key" | "length">;

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
