/** Markdown's lexer with bounds: what nests deeper than anyone writes is text, so no answer can exhaust the stack. */

import { Lexer, type MarkedOptions, Tokenizer, type Tokens } from "marked";

import { hasOwnLine } from "./math-syntax";

/** Quotes in quotes, lists in lists, emphasis in links, and so on. */
const MAX_DEPTH = 24;

export class BoundedLexer extends Lexer {
  constructor(options: MarkedOptions) {
    super({ ...options, tokenizer: new BoundedTokenizer() });
  }
}

class BoundedTokenizer extends Tokenizer {
  private depth = 0;

  override blockquote(src: string): Tokens.Blockquote | undefined {
    return this.deeper(() => super.blockquote(src));
  }

  override list(src: string): Tokens.List | undefined {
    return this.deeper(() => super.list(src));
  }

  override emStrong(src: string, masked: string, before?: string): Tokens.Em | Tokens.Strong | undefined {
    return this.deeper(() => super.emStrong(src, masked, before));
  }

  override del(src: string, masked: string, before?: string): Tokens.Del | undefined {
    return this.deeper(() => super.del(src, masked, before));
  }

  override link(src: string): Tokens.Link | Tokens.Image | undefined {
    return this.deeper(() => super.link(src));
  }

  /** A lone "=" or "-" in a formula underlines no heading. */
  override lheading(src: string): Tokens.Heading | undefined {
    const heading = super.lheading(src);
    return heading && hasOwnLine(heading.text) ? undefined : heading;
  }

  private deeper<T>(read: () => T): T | undefined {
    if (this.depth >= MAX_DEPTH) return undefined;
    this.depth += 1;
    try {
      return read();
    } finally {
      this.depth -= 1;
    }
  }
}
