"""`deepwell bench --compare`: real processes taking turns, with stand-ins for the other engines."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake_peer import build, gguf

from deepwell.bench import limits
from deepwell.bench.cells import Cell, Plan
from deepwell.bench.chart import draw
from deepwell.bench.compare import Comparison, Limit, compare
from deepwell.bench.engines import architecture, find_peer
from deepwell.bench.process import Finished, RunFailed, run
from deepwell.cli.main import main
from deepwell.errors import ConfigError

EVERYTHING = Plan(("depth", "streams", "decode", "prefill", "load"), (512, 2048), (1, 4), (4096,), 16)


def test_a_plan_is_in_a_fixed_order_and_in_groups_of_one_process() -> None:
    load, *rest = EVERYTHING.groups()
    assert load == (Cell("load", 0),)
    assert rest == [
        (Cell("prefill", 512), Cell("prefill", 2048), Cell("decode", 1)),
        (Cell("streams", 1), Cell("streams", 4)),
        (Cell("depth", 4096),),
    ]
    assert EVERYTHING.context() == 4096 + 16 + 1


def measured(peer_folder: Path, model: Path, plan: Plan = EVERYTHING) -> dict[Cell, float]:
    peer = find_peer(f"x={peer_folder}", model, plan, 2)
    found: dict[Cell, float] = {}
    for cells in plan.groups():
        found |= peer.read(cells, run(peer.command(cells)))
    return found


@pytest.mark.parametrize("ik", [False, True])
def test_what_a_peer_prints_is_read(ik: bool, tmp_path: Path) -> None:
    found = measured(build(tmp_path / "bin", ik=ik), gguf(tmp_path / "m.gguf", "llama"))
    assert found == {
        Cell("prefill", 512): 612.0,
        Cell("prefill", 2048): 2148.0,
        Cell("decode", 1): 20.0,
        Cell("streams", 1): 7.5,
        Cell("streams", 4): 30.0,
        Cell("depth", 4096): pytest.approx(15.0 if ik else 15.904),
    }


@pytest.mark.parametrize(("ik", "kind"), [(False, "deepseek2"), (True, "deepseek2"), (True, "llama")])
def test_every_engine_gets_its_best_flags(ik: bool, kind: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "bin", ik=ik)
    measured(folder, model := gguf(tmp_path / "m.gguf", kind))
    load, read, deep = map(json.loads, (folder / "calls").read_text().splitlines())
    for flags in (load, read, deep):
        assert flags["-t"] == ["2"]
        assert flags["-r"] == ["1"]
        assert ("-rtr" in flags, "-fa" in flags) == (ik, ik)
        assert ("-mla" in flags) == (ik and kind == "deepseek2")
    assert load["-p"] == ["1"]
    assert ("--no-warmup" in load, "-w" in load) == (not ik, ik)
    assert (read["-p"], read["-n"]) == (["512,2048"], ["16"])
    assert (deep.get("-gp"), deep.get("-d")) == ((["4096,16"], None) if ik else (None, ["4096"]))
    peer = find_peer(f"x={folder}", model, EVERYTHING, 2)
    assert (peer.note(Cell("streams", 4)) is not None) == (ik and kind == "deepseek2")
    assert peer.note(Cell("decode", 1)) is None


def test_a_peer_leaves_no_files_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    measured(build(tmp_path / "bin"), gguf(tmp_path / "m.gguf", "llama"))
    assert list((tmp_path / "here").iterdir()) == []


def test_a_file_that_a_peer_cannot_read_is_reported_in_its_own_words(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"nothing")
    with pytest.raises(RunFailed, match=r"(?s)llama-bench ended with code 1: .*invalid magic.*failed to load model"):
        measured(build(tmp_path / "bin"), model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("print('[]')", "no result for: prefill, 512 tokens"),
        ("print('hello')", "printed no JSON"),
        ("print('[{}]')", "printed no JSON"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by signal 9: it said nothing"),
        ("print('x' * 5_000_000)", "printed more than 4194304 bytes"),
    ],
)
def test_broken_output_is_an_error_and_no_number(text: str, said: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "bin")
    peer = find_peer(f"x={folder}", tmp_path, EVERYTHING, 2)
    bench = folder / "llama-bench"
    bench.write_text(bench.read_text().splitlines()[0] + "\n" + text)
    cells = [Cell("prefill", 512)]
    with pytest.raises(RunFailed, match=said):
        peer.read(cells, run(peer.command(cells)))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("llama.cpp", "must be NAME=PATH"),
        ("=bin", "must be NAME=PATH"),
        ("x=nowhere", r"nowhere is missing or cannot be run"),
        ("x=empty", r"empty/llama-bench is missing or cannot be run"),
    ],
)
def test_a_wrong_peer_is_named_before_anything_runs(
    option: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        find_peer(option, tmp_path / "m.gguf", EVERYTHING, 2)


def test_a_missing_batched_bench_matters_only_for_streams(tmp_path: Path) -> None:
    folder = build(tmp_path / "bin")
    (folder / "llama-batched-bench").unlink()
    with pytest.raises(ConfigError, match=r"streams need .*llama-batched-bench"):
        find_peer(f"x={folder}", tmp_path / "m.gguf", EVERYTHING, 2)
    assert find_peer(f"x={folder}", tmp_path / "m.gguf", Plan(("decode",), (), (), (), 4), 2).name == "x"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\0" * 5000, b"PK\3\4general.architecture" + b"\0" * 99])
def test_the_architecture_of_no_gguf_file_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(content)
    assert architecture(tmp_path / "m") is None
    assert architecture(tmp_path) is None
    assert architecture(gguf(tmp_path / "v2", "deepseek2")) == "deepseek2"


class Scripted:
    """An engine whose runs are listed beforehand; None fails."""

    def __init__(self, name: str, runs: list[float | None], order: list[str]) -> None:
        self.name, self._runs, self._order = name, runs, order

    def command(self, cells: list[Cell]) -> list[str]:
        self._order.append(self.name)
        return [self.name]

    def read(self, cells: list[Cell], done: Finished) -> dict[Cell, float]:
        if (run := self._runs.pop(0)) is None:
            raise RunFailed("out of luck")
        return dict.fromkeys(cells, run)

    def note(self, cell: Cell) -> str | None:
        return None


def scripted(plan: Plan, order: list[str], **runs: list[float | None]) -> Comparison:
    return compare(
        [Scripted(name, list(values), order) for name, values in runs.items()],
        plan,
        model="m",
        rounds=3,
        threads=1,
        limit=lambda: Limit(1e9, None),
        start=lambda command: Finished("", "", 1.5, 1000 + len(command[0])),
    )


def test_engines_take_turns_and_medians_decide() -> None:
    order: list[str] = []
    result = scripted(Plan(("decode",), (), (), (), 4), order, a=[10, 30, 20], bb=[5, 40, 10], c=[1, 1, 1])
    assert order == ["a", "bb", "c", "bb", "c", "a", "c", "a", "bb"]
    decode, memory = result.rows
    assert [(s.median, s.low, s.high, s.ratio) for s in decode.scores] == [
        (20, 10, 30, None),
        (10, 5, 40, 2.0),
        (1, 1, 1, 20.0),
    ]
    assert [s.median for s in memory.scores] == [1001, 1002, 1001]
    assert memory.scores[1].ratio == pytest.approx(1002 / 1001)
    assert not result.failed


def test_a_failure_is_kept_and_not_repeated() -> None:
    order: list[str] = []
    result = scripted(Plan(("decode",), (), (), (), 4), order, a=[10, 30, 20], b=[None])
    assert order.count("b") == 1
    assert result.rows[0].scores[1].error == "out of luck"
    assert result.rows[0].scores[1].median is None
    assert result.failed


def test_the_picture_is_wellformed_and_complete() -> None:
    result = scripted(Plan(("decode",), (), (), (), 4), [], **{"a": [10, 30, 20], "<&>": [5, 40, 10], "c": [None]})
    picture = ElementTree.fromstring(draw(result))
    texts = ["".join(node.itertext()) for node in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"decode, 1 stream", "<&>", "20.00", "10.00 (x 2.00)", "failed"} <= set(texts)
    assert "prefers-color-scheme: dark" in draw(result)
    assert draw(result) == draw(result)


def test_from_the_command_line(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "_QUICK_READ_BYTES", 1 << 24)
    peer = build(tmp_path / "bin")
    (peer / "llama-bench").write_text((peer / "llama-bench").read_text().replace('open(flags["-m"][0], "rb")', "X"))
    (peer / "llama-bench").write_text((peer / "llama-bench").read_text().replace("if not X.read(4)", "if not b'GGUF'"))
    sizes = ["--prompt-tokens", "100,200", "--decode-tokens", "5", "--streams", "3", "--depths", "300"]
    command = ["bench", str(model_folder), *sizes, "--measure", "load,prefill,decode,streams,depth", "--repeats", "1"]
    command += ["--compare", f"other={peer}", "--chart", str(tmp_path / "chart.svg"), "--dtype", "int8", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["engines"] == ["Deepwell", "other"]
    assert report["dtype"] == "int8"
    assert len(report["read_bytes_per_second"]) == 8, "around every turn of two engines at four groups"
    rows = {(row["measure"], row["size"]): row["scores"] for row in report["rows"]}
    wanted = [("load", 0), ("prefill", 100), ("prefill", 200), ("decode", 1), ("streams", 3), ("depth", 300)]
    assert list(rows) == [*wanted, ("memory", 0)]
    for own, other in rows.values():
        assert own["error"] is None
        assert own["median"] > 0
        assert other["error"] is None
    own, other = rows["prefill", 200]
    assert other["median"] == 300.0
    assert other["ratio"] == pytest.approx(own["median"] / 300)
    assert all(rows[key][0]["fraction"] > 0 for key in wanted if key[0] in ("prefill", "decode", "depth"))
    ElementTree.parse(tmp_path / "chart.svg")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--compare", "x=/"], "--compare needs MODEL"),
        (["nowhere.gguf", "--compare", "x=/"], "nowhere.gguf does not exist"),
        (["--chart", "x.svg"], "--chart draws a comparison"),
        (["--measure", "speed"], "--measure: must be a list, each one of decode, depth, load, prefill, streams"),
        (["--prompt-tokens", "512,0"], "--prompt-tokens: must be a list, each an integer of at least 1"),
    ],
)
def test_wrong_use_is_explained(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *args]) == 2
    assert said in capsys.readouterr().err
