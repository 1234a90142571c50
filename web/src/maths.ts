/** Formulas as MathML elements. Temml reads TeX into a tree of values; the elements are made here, from names that are known. */

import "temml/dist/Temml-Local.css";
import temml from "temml";

import { h } from "./dom";

const MATHML = "http://www.w3.org/1998/Math/MathML";
const ELEMENTS = new Set(
  [
    "math mrow mi mo mn ms mtext mspace mfrac msqrt mroot mstyle merror mpadded mphantom menclose msub",
    "msup msubsup munder mover munderover mmultiscripts mprescripts mtable mtr mtd mlabeledtr none",
    "semantics",
  ].flatMap((line) => line.split(" ")),
);
/** Attributes that only say how something looks; none that loads, links or runs. */
const ATTRIBUTES = new Set(
  [
    "accent accentunder class columnalign columnlines columnspacing dir display displaystyle depth fence",
    "form frame height largeop lspace mathbackground mathcolor mathsize mathvariant maxsize minsize",
    "movablelimits notation rowalign rowlines rowspacing rspace scriptlevel separator side stretchy",
    "symmetric voffset width linethickness",
  ].flatMap((line) => line.split(" ")),
);
/** Style values: lengths, colours and keywords, but no address. */
const PLAIN = /^(?!.*url\()[\w\s#.,:;%()+*/-]*$/;
/** A formula that makes more elements than this is left as it was written. */
const MAX_NODES = 5_000;

/** What Temml makes of TeX: elements of MathML or HTML, and texts. */
interface Tree {
  type?: string;
  text?: string;
  attributes?: Record<string, unknown>;
  classes?: string[];
  style?: Record<string, string>;
  children?: Tree[];
}

/** The formula as an element; throws for TeX that cannot be read. */
export function typeset(tex: string, display: boolean): Node {
  const options = { displayMode: display, throwOnError: true, maxSize: [20, 200] as [number, number], maxExpand: 300 };
  const budget = { left: MAX_NODES };
  return build(temml.__renderToMathMLTree(tex, options) as Tree, budget);
}

function build(tree: Tree, budget: { left: number }): Node {
  budget.left -= 1;
  if (budget.left < 0) throw new Error("This formula is too large.");
  if (tree.type === undefined && tree.text !== undefined) return document.createTextNode(tree.text);
  const children = (tree.children ?? []).map((child) => build(child, budget));
  if (tree.type === undefined && tree.attributes === undefined) {
    const group = document.createDocumentFragment();
    group.append(...children);
    return group;
  }
  const element = ELEMENTS.has(tree.type ?? "") ? document.createElementNS(MATHML, tree.type ?? "") : h("span");
  if (tree.classes?.length) element.setAttribute("class", tree.classes.filter(Boolean).join(" "));
  const style = (element as HTMLElement).style as CSSStyleDeclaration | undefined;
  for (const [name, value] of Object.entries(tree.attributes ?? {})) {
    if (ATTRIBUTES.has(name)) element.setAttribute(name, String(value));
    // Through the object model: the page's policy forbids the attribute.
    else if (name === "style" && style && PLAIN.test(String(value))) style.cssText = String(value);
  }
  for (const [name, value] of Object.entries(tree.style ?? {})) if (PLAIN.test(value)) style?.setProperty(kebab(name), value);
  element.append(...children);
  return element;
}

const kebab = (name: string): string => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

/** Whether an index stands lower than its letter: with fonts that are not made for maths it stays on the line. */
function lowersIndices(): boolean {
  const probe = h("span", { class: "copied math" }, typeset("x_1", false));
  document.body.append(probe);
  const [letter, index] = [...probe.querySelectorAll("mi, mn")].map((each) => each.getBoundingClientRect().bottom);
  probe.remove();
  return letter !== undefined && index !== undefined && index > letter + 1;
}

document.documentElement.classList.toggle("flat-indices", !lowersIndices());
