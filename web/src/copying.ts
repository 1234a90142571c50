/** Copying a selection: a formula is copied as it was written. */

import { h } from "./dom";

/** Puts the sources of formulas in place of their shapes in whatever is copied from `place`. */
export function copySources(place: HTMLElement): void {
  place.addEventListener("copy", (event) => {
    const selection = getSelection();
    if (!selection?.rangeCount || !event.clipboardData) return;
    const range = selection.getRangeAt(0).cloneRange();
    const [first, last] = [formulaAround(range.startContainer), formulaAround(range.endContainer)];
    if (first) range.setStartBefore(first);
    if (last) range.setEndAfter(last);
    const copied = range.cloneContents();
    const formulas = copied.querySelectorAll<HTMLElement>(".math");
    if (formulas.length === 0) return;
    for (const formula of formulas) formula.textContent = formula.dataset["source"] ?? "";
    event.clipboardData.setData("text/plain", laidOut(copied));
    event.preventDefault();
  });
}

function formulaAround(node: Node): Element | null {
  return (node instanceof Element ? node : node.parentElement)?.closest(".math") ?? null;
}

/** The text with the line breaks that the page shows, which only elements in the page have. */
function laidOut(copied: DocumentFragment): string {
  const place = h("div", { class: "copied markdown", "aria-hidden": "true" }, copied);
  document.body.append(place);
  const text = place.innerText;
  place.remove();
  return text;
}
