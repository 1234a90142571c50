/** Building elements without HTML text: nothing in the page ever parses a string as markup. */

export type Child = Node | string | null;

type Attributes = Record<string, string | boolean | ((event: Event) => void)>;

/** `h("button", { class: "icon", onclick: run }, "Run")`. True sets an empty attribute, false none. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** An element of SVG, as `h` makes those of HTML. */
export function s(tag: string, attributes: Record<string, string | number>, ...children: Node[]): SVGElement {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** The element of the page with this id. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element #${id}`);
  return element as T;
}

const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  check: "M5 12.5l4.500 4.500L19 7.500",
  again: "M20 11a8 8 0 1 0-2.300 6M20 5v6h-6",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.500 11v5M13.500 11v5",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  close: "M6 6l12 12M18 6L6 18",
  sliders: "M4 8h9M19 8h1M4 16h1M11 16h9M16 5.500a2.500 2.500 0 1 1 0 5 2.500 2.500 0 0 1 0-5zM8 13.500a2.500 2.500 0 1 1 0 5 2.500 2.500 0 0 1 0-5z",
  sun: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM12 2.500v2M12 19.500v2M2.500 12h2M19.500 12h2M5.300 5.300l1.400 1.400M17.300 17.300l1.400 1.400M5.300 18.700l1.400-1.400M17.300 6.700l1.400-1.400",
  moon: "M20 14.500A8.500 8.500 0 0 1 9.500 4a8.500 8.500 0 1 0 10.500 10.500z",
  auto: "M12 3.500a8.500 8.500 0 1 1 0 17 8.500 8.500 0 0 1 0-17zM12 3.500v17M12 8h5.500M12 12h8.500M12 16h6.500",
  keys: "M3 7h18v11H3zM7 11h.010M11 11h.010M15 11h.010M8 14.500h8",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  upload: "M12 16V5M7 9l5-5 5 5M5 20h14",
} as const;

export type IconName = keyof typeof ICONS;

export function icon(name: IconName): SVGElement {
  return s("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", class: "icon" }, s("path", { d: ICONS[name] }));
}

/** A button with an icon and no text; the label is its name and its tooltip. */
export function iconButton(name: IconName, label: string, onclick: (event: Event) => void): HTMLButtonElement {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick }, icon(name));
}

/** A copy button that shows a tick for a moment. `text` is read when pressed. */
export function copyButton(label: string, text: () => string): HTMLButtonElement {
  const button = iconButton("copy", label, () => {
    void copyText(text()).then((done) => {
      button.replaceChildren(icon(done ? "check" : "close"));
      announce(done ? "Copied" : "The browser did not allow copying");
      setTimeout(() => button.replaceChildren(icon("copy")), 1500);
    });
  });
  return button;
}

/** Copies on plain http too, where navigator.clipboard does not exist. */
async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { class: "offscreen", "aria-hidden": "true" });
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** Tells screen readers something that sighted users see happen. */
export function announce(text: string): void {
  byId("announcer").textContent = text;
}
