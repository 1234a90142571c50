import { describe, expect, test } from "vitest";

import { MarkdownView } from "../src/markdown";

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
