import { beforeAll, describe, expect, test } from "vitest";

import { GrowingText } from "../src/growing-text";
import { MarkdownView } from "../src/markdown";
import { maskMath, readMath } from "../src/math-syntax";

beforeAll(async () => {
  render("```python\n1\n```\n\n$x$");
  await Promise.all([import("../src/highlight"), import("../src/maths")]);
});

function render(...texts: string[]): HTMLElement {
  const view = new MarkdownView();
  for (const text of texts) view.update(text);
  return view.element;
}

const html = (text: string): string => render(text).innerHTML;

describe("markdown", () => {
  test("becomes elements", () => {
    expect(html("a **b** *c* ~~d~~ `e`")).toBe("<p>a <strong>b</strong> <em>c</em> <del>d</del> <code>e</code></p>");
    expect(html("# T")).toBe("<h2>T</h2>");
    expect(html("3. x\n4. y")).toBe('<ol start="3"><li class="">x</li><li class="">y</li></ol>');
    expect(render("- [x] done").querySelector("input")?.hasAttribute("checked")).toBe(true);
    expect(render("|a|b|\n|-|-:|\n|1|2|").querySelector("td.align-right")?.textContent).toBe("2");
    expect(render("> q").querySelector("blockquote p")?.textContent).toBe("q");
  });

  test("colours code in known languages and keeps its text exactly", () => {
    const code = 'def f(x):\n    return f"{x} <b>&amp;" # no';
    const element = render(`\`\`\`python\n${code}\n\`\`\``).querySelector("pre");
    expect(element?.textContent).toBe(code);
    expect(element?.querySelector(".hl-keyword")?.textContent).toBe("def");
    expect(element?.querySelector(".hl-comment")?.textContent).toBe("# no");
    expect(render("```html\n<script>let a = 1</script>\n```").querySelector("pre")?.textContent).toBe("<script>let a = 1</script>");
    expect(render("```nope\n<b>\n```").querySelector("pre")?.textContent).toBe("<b>");
  });

  test("shows character references as characters, not as markup", () => {
    expect(render("a &lt;b&gt; &amp; &#65;&#x42; &nosuch;").textContent).toBe("a <b> & AB &nosuch;");
    expect(render("`&lt;`").textContent).toBe("&lt;");
  });

  test("ends up the same when the text grows piece by piece", () => {
    const text = "# A\n\ntext **bold**\n\n```python\nx = 1\n\ny = 2\n```\n\n- one\n- two\n\n  more\n\n|a|\n|-|\n|b|\n";
    const grown = render(...Array.from({ length: text.length }, (_, i) => text.slice(0, i + 1)));
    expect(grown.innerHTML).toBe(html(text));
  });
});

test("a long text ends up the same when it grows, and what is done is not cut again", () => {
  const part = [
    "# A", "text **b**\nmore", "- one\n\n- two\n\n  three", "1. x\n\n       code", "```py\nx = 1\n\n\ny = 2\n```", "> q\n\n> r", "|a|\n|-|\n|b|",
    "$$\nx\n\n+ y\n$$", "\\[ a", "\\] or so", "Title\n---", "    indented\n\n    code", "<div>\n\nx\n\n</div>", "\\(a", "b\\)", "last\n\n\n\nlines",
  ];
  const text = [...part, ...[...part].reverse(), ...part, "see [this] and", ...part].join("\n\n");
  for (const end of ["", "\n\n[this]: https://elsewhere.example"]) {
    const whole = text + end;
    const sizes = Array.from({ length: Math.ceil(whole.length / 5) }, (_, at) => whole.slice(0, 5 * (at + 1)));
    expect(render(...sizes, whole).innerHTML).toBe(html(whole));
  }
  const growing = new GrowingText();
  const before = growing.cut(text);
  const after = growing.cut(`${text} more`);
  expect(after.filter((token, at) => token === before[at]).length).toBeGreaterThan(before.length - 12);
});

describe("maths", () => {
  const sources = (text: string): string[] =>
    [...render(text).querySelectorAll(".math.set")].map((each) => `${each.classList.contains("display") ? "D" : "I"} ${each.getAttribute("data-source")}`);

  test("is found in its delimiters", () => {
    expect(sources("so \\(a_1 * b_1\\) and \\(a*b\\)")).toEqual(["I \\(a_1 * b_1\\)", "I \\(a*b\\)"]);
    expect(sources("\\[\na \\\\ b\n=\nc\n\\]")).toEqual(["D \\[\na \\\\ b\n=\nc\n\\]"]);
    expect(sources("where\n\\[\nx\n=\ny\n\\]\nholds")).toEqual(["D \\[\nx\n=\ny\n\\]"]);
    expect(sources("$$\nx\n+ y\n$$")).toEqual(["D $$\nx\n+ y\n$$"]);
    expect(sources("- one:\n  $$x^2$$\n- two $y$")).toEqual(["D $$x^2$$", "I $y$"]);
    expect(sources("the $n$th of $2^n$, and **$x$**")).toEqual(["I $n$", "I $2^n$", "I $x$"]);
    expect(sources("\\begin{align}\na &= b \\\\\nc &= d\n\\end{align}")).toHaveLength(1);
    expect(sources("*a $b*c$ d*")).toEqual(["I $b*c$"]);
  });

  test.each(["$5 and $6", "$5-$10", "from $HOME:$PATH", "US$5 and A$7", "a $ b $ c", "\\$x\\$", "`$x$`", "$5 million to $10 million"])(
    "is not found in %s",
    (text) => expect(sources(text)).toEqual([]),
  );

  test("is MathML, without attributes that load or run", () => {
    const element = render("\\(\\frac{\\pmb{a}}{\\href{javascript:alert(1)}{x}}\\) and $\\sqrt[3]{x^2}$");
    expect(element.querySelector("math mroot")).not.toBeNull();
    expect(element.querySelectorAll("[href], [src], [onclick]")).toHaveLength(0);
  });

  test("that cannot be read, or has not ended, stays as it was written", () => {
    for (const text of ["\\(\\frac{a\\)", "\\[ x_1 * y_1 * \\\\ {", "$$ a_b", "\\(" + "{".repeat(3000) + "\\)", "\\(\\def\\x{\\x\\x}\\x\\)"]) {
      expect(render(text).textContent).toBe(text);
    }
  });

  test("never throws while it grows, and ends up the same", () => {
    const text = "So \\(a_1\\) is\n\\[\n\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}\n\\]\nand $$x = \\frac{1}{2}$$ for $n$.";
    const grown = render(...Array.from({ length: text.length }, (_, i) => text.slice(0, i + 1)));
    expect(grown.innerHTML).toBe(html(text));
  });

  test("is masked for emphasis without changing a length", () => {
    expect(maskMath("*a \\(b*c\\) \\\\(d) $e*f$ $5*")).toBe("*a aaaaaaa \\\\(d) aaaaa $5*");
    expect(readMath("\\(a \\\\) b\\)")?.tex).toBe("a \\\\) b");
  });
});

describe("hostile Markdown is bounded", () => {
  const cases: Record<string, string> = {
    quotes: ">".repeat(2500) + " deep",
    "spaced quotes": "> ".repeat(2500) + "deep",
    lists: "- ".repeat(2500) + "deep",
    "indented lists": Array.from({ length: 500 }, (_, i) => `${"  ".repeat(i)}- x`).join("\n"),
    emphasis: "*a **b ".repeat(2000),
    brackets: "[".repeat(20_000) + "a" + "](b)".repeat(5000),
    stars: "*".repeat(20_000) + "a",
    underscores: "_a".repeat(10_000),
    ticks: "`a``".repeat(5000),
    dollars: "$a\\".repeat(5000),
    openings: "\\(".repeat(5000),
    "display openings": "$$\n".repeat(5000),
    "a long line": "x".repeat(200_000),
    "a wide table": `|${"a|".repeat(300)}\n|${"-|".repeat(300)}\n${`|${"b|".repeat(300)}\n`.repeat(200)}`,
    markup: "<a ".repeat(20_000),
    references: "[a]: b\n".repeat(3000) + "[a]".repeat(3000),
  };

  test.each(Object.keys(cases))("%s", (name) => {
    const text = cases[name] ?? "";
    const began = performance.now();
    const element = render(text);
    expect(performance.now() - began).toBeLessThan(5000);
    let depth = 0;
    for (let each: Element | null = element.querySelector("p, li, td, span, pre"); each; each = each.firstElementChild) depth += 1;
    expect(depth).toBeLessThan(120);
    expect(element.textContent.length).toBeGreaterThan(0);
  });
});

describe("markup in an answer", () => {
  const attacks = [
    "<script>alert(1)</script>",
    "x <script>alert(1)</script> y",
    "<img src=x onerror=alert(1)>",
    "a <img src=x onerror=alert(1)> b",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x]( javascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:alert(1))",
    "![x](javascript:alert(1))",
    "![x](https://elsewhere.example/pixel.png)",
    '![x" onerror="alert(1)](https://elsewhere.example/)',
    "<javascript:alert(1)>",
    "[x]: javascript:alert(1)\n\n[x]",
    "```\"><img src=x onerror=alert(1)>\ncode\n```",
    "```html\n<img src=x onerror=alert(1)>\n```",
    "`<img src=x onerror=alert(1)>`",
    "# <img src=x onerror=alert(1)>",
    "|<img src=x onerror=alert(1)>|\n|-|\n|<script>alert(1)</script>|",
    "- <details open ontoggle=alert(1)>",
    "&lt;img src=x onerror=alert(1)&gt;",
    "<style>body{display:none}</style>",
    "<form action=https://elsewhere.example><input name=a></form>",
    "<math><mtext></mtext><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=alert(1)&gt;'>",
  ];

  test.each(attacks)("is inert: %s", (attack) => {
    const element = render(attack);
    expect(element.querySelector("script, img, svg:not(.icon), iframe, style, form, math, object, embed, link")).toBeNull();
    for (const each of element.querySelectorAll("*")) {
      for (const { name } of each.attributes) expect(name.startsWith("on") || name === "style" || name === "src").toBe(false);
    }
    for (const link of element.querySelectorAll("a")) {
      expect(link.getAttribute("href")).toMatch(/^(https?:\/\/|mailto:)/i);
      expect(link.rel).toContain("noopener");
    }
  });

  test("is shown as it was written", () => {
    expect(render("a <b onclick=x>bold</b>").textContent).toBe("a <b onclick=x>bold</b>");
    expect(render("<script>1</script>").textContent).toBe("<script>1</script>");
  });
});
