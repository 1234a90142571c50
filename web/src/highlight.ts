/** Code to coloured elements. highlight.js finds the scopes; its HTML output is never made. */

import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import clojure from "highlight.js/lib/languages/clojure";
import cmake from "highlight.js/lib/languages/cmake";
import cpp from "highlight.js/lib/languages/cpp";
import csharp from "highlight.js/lib/languages/csharp";
import css from "highlight.js/lib/languages/css";
import dart from "highlight.js/lib/languages/dart";
import diff from "highlight.js/lib/languages/diff";
import dockerfile from "highlight.js/lib/languages/dockerfile";
import elixir from "highlight.js/lib/languages/elixir";
import erlang from "highlight.js/lib/languages/erlang";
import fortran from "highlight.js/lib/languages/fortran";
import go from "highlight.js/lib/languages/go";
import graphql from "highlight.js/lib/languages/graphql";
import groovy from "highlight.js/lib/languages/groovy";
import haskell from "highlight.js/lib/languages/haskell";
import ini from "highlight.js/lib/languages/ini";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import julia from "highlight.js/lib/languages/julia";
import kotlin from "highlight.js/lib/languages/kotlin";
import latex from "highlight.js/lib/languages/latex";
import lua from "highlight.js/lib/languages/lua";
import makefile from "highlight.js/lib/languages/makefile";
import markdown from "highlight.js/lib/languages/markdown";
import matlab from "highlight.js/lib/languages/matlab";
import nginx from "highlight.js/lib/languages/nginx";
import objectivec from "highlight.js/lib/languages/objectivec";
import ocaml from "highlight.js/lib/languages/ocaml";
import perl from "highlight.js/lib/languages/perl";
import php from "highlight.js/lib/languages/php";
import powershell from "highlight.js/lib/languages/powershell";
import protobuf from "highlight.js/lib/languages/protobuf";
import python from "highlight.js/lib/languages/python";
import r from "highlight.js/lib/languages/r";
import ruby from "highlight.js/lib/languages/ruby";
import rust from "highlight.js/lib/languages/rust";
import scala from "highlight.js/lib/languages/scala";
import scss from "highlight.js/lib/languages/scss";
import shell from "highlight.js/lib/languages/shell";
import sql from "highlight.js/lib/languages/sql";
import swift from "highlight.js/lib/languages/swift";
import typescript from "highlight.js/lib/languages/typescript";
import vbnet from "highlight.js/lib/languages/vbnet";
import verilog from "highlight.js/lib/languages/verilog";
import vim from "highlight.js/lib/languages/vim";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";

const LANGUAGES = {
  bash, c, clojure, cmake, cpp, csharp, css, dart, diff, dockerfile, elixir, erlang, fortran, go, graphql, groovy,
  haskell, ini, java, javascript, json, julia, kotlin, latex, lua, makefile, markdown, matlab, nginx, objectivec,
  ocaml, perl, php, powershell, protobuf, python, r, ruby, rust, scala, scss, shell, sql, swift, typescript, vbnet,
  verilog, vim, xml, yaml,
};

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
