/** Light, dark, or as the system says. */

import { type IconName, icon } from "./dom";
import { localStorageOrNothing } from "./storage";

const STORE = "deepwell.theme";
const ORDER = ["system", "light", "dark"] as const;
type Theme = (typeof ORDER)[number];

const ICONS: Record<Theme, IconName> = { system: "auto", light: "sun", dark: "moon" };

/** Makes a button go round the themes; public/theme.js applies the choice before the first paint. */
export function themeButton(button: HTMLButtonElement): void {
  const storage = localStorageOrNothing();
  let theme = ORDER.find((name) => name === storage.getItem(STORE)) ?? "system";
  const show = (): void => {
    if (theme === "system") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = theme;
    button.replaceChildren(icon(ICONS[theme]));
    button.setAttribute("aria-label", `Theme: ${theme}`);
    button.title = `Theme: ${theme}`;
  };
  button.addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length] ?? "system";
    if (theme === "system") storage.removeItem(STORE);
    else storage.setItem(STORE, theme);
    show();
  });
  show();
}
