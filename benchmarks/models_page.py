"""The support table of docs/models.md, from the exactness tests, the released models and the prompt formats.

    python benchmarks/models_page.py                    # needs the `dev` extra; half a minute
    python benchmarks/models_page.py --errors FILE      # of an earlier run of the tests with MODEL_ERRORS=FILE

Runs the tests that compare logits with a reference, and writes the part of the page between its two marks anew. The
columns of prompt formats come from their registry, those of sizes from the released models' shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from transformers import __version__ as transformers_version

from deepwell.chat import FORMATS
from deepwell.model.published import Published, published
from deepwell.weights.gguf.keys import ARCHITECTURES

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "models.md"
TESTS = ("tests/model/test_families.py", "tests/model/test_sparse_attention.py")
BEGIN, END = "<!-- made by benchmarks/models_page.py -->", "<!-- end of what it made -->"


class Row(msgspec.Struct, frozen=True):
    """A row of the table: `name` as the tests record it, the released models it stands for, and how they talk.

    `formats` are prompt formats by name, of which those in the registry are shown. `fim`: whether the vocabulary has
    the tokens for filling gaps. `gguf` is the architecture's name in GGUF files.
    """

    name: str
    models: str
    formats: tuple[str, ...]
    gguf: str
    fim: bool = False


ROWS = (
    Row("LLM, Math, Prover", r"DeepSeek-(LLM|Math-7B|Prover-(V1|V2-7B)).*", ("deepseek-llm",), "llama"),
    Row("Coder", r"DeepSeek-Coder-\d.*", ("deepseek-coder",), "llama", fim=True),
    Row("MoE-16B", r"DeepSeek-MoE.*", ("deepseek-llm",), "deepseek"),
    Row("V2, Coder-V2", r"DeepSeek-(Coder-)?V2.*", ("deepseek-llm", "deepseek-v2.5"), "deepseek2", fim=True),
    Row(
        "V3, R1",
        r"DeepSeek-(V3|V3-0324|R1|R1-Zero|R1-0528|Prover-V2-671B)",
        ("deepseek-v3", "deepseek-r1", "deepseek-r1-0528"),
        "deepseek2",
        fim=True,
    ),
    Row("V3.1", r"DeepSeek-V3\.1.*", ("deepseek-v3.1",), "deepseek2", fim=True),
    Row("V3.2", r"DeepSeek-(V3\.2|Math-V2).*", ("deepseek-v3.1", "deepseek-v3.2"), "deepseek32", fim=True),
    Row("R1-Distill-Qwen", r"DeepSeek-R1-Distill-Qwen.*", ("deepseek-r1",), "qwen2", fim=True),
    Row("R1-Distill-Llama", r"DeepSeek-R1-Distill-Llama.*", ("deepseek-r1",), "llama"),
    Row("R1-0528-Qwen3", r"DeepSeek-R1-0528-Qwen3.*", ("deepseek-r1-0528",), "qwen3", fim=True),
)
MODULE = "MTP"
"""What the tests of the multi-token prediction module record."""
_TEMPLATE = "its checkpoint's template, run by transformers"
VERIFIED: Mapping[str, str] = {
    "deepseek-llm": _TEMPLATE,
    "deepseek-coder": _TEMPLATE,
    "deepseek-v3": _TEMPLATE + " (not the list of tools)",
    "deepseek-r1": _TEMPLATE + " (not the list of tools)",
    "deepseek-r1-0528": _TEMPLATE + " (not the list of tools)",
    "deepseek-v3.1": _TEMPLATE + " (the list of tools: its model card)",
    "deepseek-v3.2": "DeepSeek's encoder, prompts and answers",
    "deepseek-v4": "deepseek-recipe, prompts, ids and answers",
    "deepseek-v4.1": "deepseek-recipe, prompts, ids and answers",
}
"""What a prompt format's tests compare it with, by its name, where that is more than strings in the tests."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the support table of docs/models.md.")
    parser.add_argument("--errors", type=Path, help="what the tests recorded; they are run if left out")
    errors = parser.parse_args().errors
    with tempfile.TemporaryDirectory() as folder:
        if errors is None:
            errors = Path(folder) / "errors.jsonl"
            tests = [test for test in TESTS if (ROOT / test).exists()]
            environ = os.environ | {"MODEL_ERRORS": str(errors)}
            subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, env=environ, check=True)
        recorded = [json.loads(line) for line in errors.read_text("utf-8").splitlines()]
    PAGE.write_text(replaced(PAGE.read_text("utf-8"), "\n".join(render(recorded))), "utf-8")


def replaced(page: str, table: str) -> str:
    """`page` with what stands between the marks made anew."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def render(recorded: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Both tables and the lines around them."""
    measured = list(recorded)
    yield "| family | released sizes | files read | reference | max logit error | prompt format | features |"
    yield "|---|---|---|---|---|---|---|"
    for row in ROWS:
        own = [r for r in measured if r["row"] == row.name]
        if own:
            yield f"| {' | '.join(_cells(row, own, measured))} |"
    yield ""
    yield "Logits are those of seeded random weights in the true architecture at small width and random shapes, in"
    yield f"float32; the error is the largest of any logit, where logits reach {_typical(measured):.0f}. The float64"
    yield "formula is `tests/model/paper_model.py`, written from the papers; transformers is version"
    yield f"{transformers_version}, in float64, where it computes the family."
    yield ""
    yield "| prompt format | reasoning | tools | compared with |"
    yield "|---|---|---|---|"
    for format in FORMATS.values():
        against = VERIFIED.get(format.name, "its layout, string by string")
        yield f"| `{format.name}` | {format.thinks} | {'yes' if format.tools else 'no'} | {against} |"


def _cells(row: Row, own: list[Mapping[str, Any]], measured: list[Mapping[str, Any]]) -> Iterator[str]:
    models = released(row)
    yield row.name
    yield ", ".join(_shortened(model.name) for model in models)
    kinds = "float32, float16, bfloat16" + (", block FP8" if any(m.stored == "float8" for m in models) else "")
    yield f"safetensors ({kinds})" + (f"; GGUF (`{row.gguf}`)" if row.gguf in ARCHITECTURES.values() else "")
    yield ", ".join(dict.fromkeys(r["reference"] for r in own))
    yield f"{max(r['error'] for r in own):.1e}"
    formats = [FORMATS[name] for name in row.formats if name in FORMATS]
    yield ", ".join(f"`{format.name}`" for format in formats) or "not yet"
    features = {
        "reasoning": any(format.thinks != "never" for format in formats),
        "tools": any(format.tools for format in formats),
        "prefix": bool(formats),
        "FIM": row.fim,
        MODULE: any(model.config.mtp_layers for model in models),
    }
    words = [name for name, has in features.items() if has]
    if module := [r["error"] for r in measured if r["row"] == MODULE]:
        words = [f"{MODULE} ({max(module):.1e})" if word == MODULE else word for word in words]
    yield ", ".join(words)


def released(row: Row) -> list[Published]:
    return [model for model in published().values() if re.fullmatch(row.models, model.name)]


def _shortened(name: str) -> str:
    return re.sub(r"^DeepSeek-(R1-Distill-)?", "", name)


def _typical(measured: list[Mapping[str, Any]]) -> float:
    largest = sorted(r["largest"] for r in measured)
    return float(largest[len(largest) // 2])


if __name__ == "__main__":
    main()
