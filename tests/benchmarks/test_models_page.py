"""benchmarks/models_page.py: each released model has its row, and the committed page is the one that it makes."""

import json
import re
from pathlib import Path

import models_page
import pytest
import records

from deepwell.chat import FORMATS
from deepwell.model.published import published

_NUMBER = re.compile(r"\d\.\de-\d\d|reach \d+|version [\d.]+")


def measured() -> list[dict[str, object]]:
    names = [row.name for row in models_page.ROWS if models_page.released(row)] + [models_page.MODULE]
    return [
        {"row": name, "reference": reference, "error": error, "largest": 6.0}
        for name in names
        for reference, error in (("float64 formula", 1e-5), ("transformers", 2e-5))
    ]


def test_every_released_model_is_in_one_row() -> None:
    rows = [model.name for row in models_page.ROWS for model in models_page.released(row)]
    assert sorted(rows) == sorted(model.name for model in published().values())


def test_table() -> None:
    lines = list(models_page.render(measured()))
    [v3] = [line for line in lines if line.startswith("| V3, R1 |")]
    for text in (
        "R1-0528",
        "block FP8",
        "GGUF (`deepseek2`)",
        "float64 formula, transformers",
        "2.0e-05",
        "MTP (2.0e-05)",
    ):
        assert text in v3
    [coder] = [line for line in lines if line.startswith("| Coder |")]
    assert "5.7BMQA" in coder
    assert coder.rstrip(" |").endswith("prefix, FIM")
    assert all(any(line.startswith(f"| `{name}` |") for line in lines) for name in FORMATS)
    assert not any(line.startswith("| Coder |") for line in models_page.render(measured()[2:][-2:]))


def test_the_page_is_the_one_that_is_made() -> None:
    """But for what was measured. If this fails: python benchmarks/models_page.py."""
    page = models_page.PAGE.read_text("utf-8")
    made = models_page.replaced(page, "\n".join(models_page.render(measured())))
    plain = [
        re.sub(r"float64 formula(, transformers)?|transformers", "reference", _NUMBER.sub("N", p)) for p in (page, made)
    ]
    assert plain[0] == plain[1]


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = f"a\n{models_page.BEGIN}\nold\n{models_page.END}\nb\n"
    assert models_page.replaced(page, "new") == f"a\n{models_page.BEGIN}\nnew\n{models_page.END}\nb\n"
    with pytest.raises(ValueError, match="the page lacks"):
        models_page.replaced("a", "new")


def test_records_go_where_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "errors.jsonl"
    monkeypatch.delenv(records.VARIABLE, raising=False)
    records.record("Coder", "transformers", 1e-5, 6.0)
    monkeypatch.setenv(records.VARIABLE, str(file))
    records.record("Coder", "transformers", 1e-5, 6.0)
    assert [json.loads(line)["row"] for line in file.read_text().splitlines()] == ["Coder"]
