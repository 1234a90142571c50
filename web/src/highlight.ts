/** Code to coloured elements. highlight.js finds the scopes; its HTML output is never made. */

import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import ini from "highlight.js/lib/languages/ini";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";

const LANGUAGES = { bash, c, cpp, css, diff, go, ini, java, javascript, json, python, rust, sql, typescript, xml, yaml };

/** Longer code stays plain: colouring it while it streams would hold up the page. */
const MAX_CHARS = 50_000;

/** Gathers scopes as DOM nodes where highlight.js would write HTML text. */
class DomEmitter {
  readonly root = document.createDocumentFragment();
  private readonly open: Node[] = [this.root];

  private get top(): Node {
    return this.open[this.open.length - 1] ?? this.root;
  }

  addText(text: string): void {
    this.top.appendChild(document.createTextNode(text));
  }

  openNode(scope: string): void {
    const span = document.createElement("span");
    span.className = `hl-${scope.split(".", 1)[0]}`;
    this.top.appendChild(span);
    this.open.push(span);
  }

  closeNode(): void {
    if (this.open.length > 1) this.open.pop();
  }

  // highlight.js calls both pairs of names.
  startScope(scope: string): void {
    this.openNode(scope);
  }

  endScope(): void {
    this.closeNode();
  }

  __addSublanguage(emitter: unknown): void {
    this.top.appendChild((emitter as DomEmitter).root);
  }

  finalize(): void {}

  toHTML(): string {
    return "";
  }
}

hljs.configure({ __emitter: DomEmitter });
for (const [name, language] of Object.entries(LANGUAGES)) hljs.registerLanguage(name, language);

/** The code as nodes, coloured when the language is known. */
export function highlight(code: string, language: string): Node {
  if (!hljs.getLanguage(language) || code.length > MAX_CHARS) return document.createTextNode(code);
  const result = hljs.highlight(code, { language, ignoreIllegals: true });
  if (result.errorRaised) return document.createTextNode(code);
  return (result._emitter as unknown as DomEmitter).root;
}
