"""benchmarks/cpu.py: what was measured is kept and not measured again; the page is made from it alone."""

from __future__ import annotations

import argparse
from pathlib import Path

import cpu
import msgspec
import pytest

from deepwell.bench.cells import Cell, Plan
from deepwell.bench.compare import Comparison, Row, Score


def comparison(plan: Plan, peak: float) -> Comparison:
    """Deepwell twice as fast as a peer whose numbers of many streams need a note, and which cannot go deep."""
    rows = []
    for cell in plan.cells():
        own = Score("Deepwell", [20.0, 22.0], 21.0, 20.0, 22.0, fraction=0.5 if cell.measure == "decode" else None)
        note = "not the same work" if cell.measure == "streams" else None
        peer = Score("peer", [10.0, 11.0], 10.5, 10.0, 11.0, ratio=2.0, note=note)
        if cell.measure == "depth":
            peer = Score("peer", [], error="began\nran out of memory")
        rows.append(Row(cell.measure, cell.size, cell.title, cell.unit, cell.more_is_better, [own, peer]))
    memory = Cell("memory", 0)
    scores = [Score(name, [n * peak], n * peak, n * peak, n * peak) for n, name in ((1, "Deepwell"), (2, "peer"))]
    rows.append(Row("memory", 0, memory.title, memory.unit, False, scores))
    sides = ["Deepwell", "peer"]
    return Comparison("0.1", "A processor", "avx512", 2, "m", "int4", 2, 64, sides, [3e10, 4e10], [9e11], rows)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models measured, in order; measuring gives `comparison`."""
    models: list[str] = []

    def measured(model: Path, plan: Plan, args: argparse.Namespace) -> Comparison:
        models.append(f"{model.stem} {plan.cells()[0].measure}")
        return comparison(plan, 1e9 + len(models))

    monkeypatch.setattr(cpu, "_measured", measured)
    (tmp_path / "models").mkdir()
    for name in ("coder1b-q4_0", "ds7b-q4_0"):
        (tmp_path / "models" / f"{name}.gguf").touch()
    return models


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    monkeypatch.setattr("sys.argv", ["cpu.py", *map(str, args)])
    cpu.main()


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    models, runs = tmp_path / "models", tmp_path / "runs"
    call(monkeypatch, "measure", models, runs, "--shapes", "coder1b")
    measures = ("load", "prefill", "streams", "prefill", "depth")
    assert asked == [f"coder1b-q4_0 {measure}" for measure in measures]
    (runs / "coder1b-q4_0-streams.json").unlink()
    asked.clear()
    call(monkeypatch, "measure", models, runs, "--shapes", "coder1b,ds7b", "--measures", "load,streams")
    assert asked == ["coder1b-q4_0 streams", "ds7b-q4_0 load", "ds7b-q4_0 streams"]
    assert msgspec.json.decode((runs / "ds7b-q4_0-load.json").read_bytes(), type=Comparison).engines[1] == "peer"


def test_an_unknown_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="unknown: v4; there are v2lite, ds7b, coder1b"):
        call(monkeypatch, "measure", tmp_path, tmp_path / "runs", "--shapes", "v4")


def test_the_page(tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "measure", tmp_path / "models", tmp_path / "runs")
    call(monkeypatch, "render", tmp_path / "runs", tmp_path / "cpu.md")
    page = (tmp_path / "cpu.md").read_text()
    first = page[page.index("## ds7b, q4_0") : page.index("## coder1b, q4_0")]
    assert (
        "| decode, 1 stream, tokens/s | **21.00** (20.00 to 22.00), 50% | **10.50** (10.00 to 11.00), x 2.00 |" in first
    )
    assert "| **10.50**<sup>1</sup> (10.00 to 11.00), x 2.00 |" in first
    assert "<sup>1</sup> Not the same work." in first
    assert "peer failed at decode at depth 4,096: ran out of memory" in first
    assert "| resident memory, GB | **1.00** | **2.00**, x 2.00 |" in first
    assert "35.0 (30.0 to 40.0) GB/s" in first
    assert "(cpu-ds7b-q4_0.svg)" in first
    assert (tmp_path / "cpu-ds7b-q4_0.svg").read_text().startswith("<svg")
    assert "v2lite" not in page
