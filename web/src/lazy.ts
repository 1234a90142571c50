/** Parts of the page that are fetched when the first text needs them. */

export interface Lazy<T> {
  /** The part once it is here. */
  value: T | null;
  /** Calls `take` with the part: at once if it is here, else when it comes. If it never comes, `take` is not called. */
  use(take: (part: T) => void): void;
}

export function lazy<T>(load: () => Promise<T>): Lazy<T> {
  let loading: Promise<T | null> | null = null;
  const part: Lazy<T> = {
    value: null,
    use(take) {
      if (part.value) {
        take(part.value);
        return;
      }
      loading ??= load().then((loaded) => (part.value = loaded));
      // A failed load is tried again by the next text.
      loading.then((loaded) => loaded && take(loaded)).catch(() => (loading = null));
    },
  };
  return part;
}
