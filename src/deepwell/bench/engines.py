"""The engines that can be compared: Deepwell itself, llama.cpp and ik_llama.cpp, each as command lines."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from deepwell.bench.cells import SHORT_PROMPT, Cell, Plan
from deepwell.bench.measure import Report
from deepwell.bench.process import Finished, RunFailed
from deepwell.errors import ConfigError
from deepwell.files import open_regular

SAME_EXPERTS = (
    "its batched bench feeds the same token to every stream, so all streams choose the same experts and fewer weights "
    "are read than real prompts need; not comparable"
)


class Engine(Protocol):
    """One side of a comparison."""

    @property
    def name(self) -> str: ...

    def command(self, cells: Sequence[Cell]) -> list[str]:
        """The command line that measures one group of a plan, once."""
        ...

    def read(self, cells: Sequence[Cell], done: Finished) -> dict[Cell, float]:
        """Tokens per second by cell, from what the command printed. Raises RunFailed for anything else."""
        ...

    def note(self, cell: Cell) -> str | None:
        """What a reader must know about the engine's number of this cell."""
        ...


class Deepwell:
    """This program, in a process of its own."""

    name = "Deepwell"

    def __init__(self, model: Path, plan: Plan, threads: int, dtype: str, context: int | None) -> None:
        self._plan, self._sizes = plan, ["--decode-tokens", str(plan.decode_tokens)]
        context_flag = ["--context", str(context)] if context else []
        self._start = [
            sys.executable,
            "-m",
            "deepwell.cli.main",
            "bench",
            str(model.absolute()),
            "--json",
            "--no-limits",
            "--speculate",
            "off",
        ]
        self._start += ["--repeats", "1", "--threads", str(threads), "--dtype", dtype, *context_flag]
        self.report: Report | None = None
        """What the latest run said of itself."""

    def command(self, cells: Sequence[Cell]) -> list[str]:
        sizes = {"prefill": "--prompt-tokens", "streams": "--streams", "depth": "--depths"}
        command = [*self._start, *self._sizes, "--measure", ",".join(dict.fromkeys(c.measure for c in cells))]
        for measure, flag in sizes.items():
            chosen = [str(cell.size) for cell in cells if cell.measure == measure]
            command += [flag, ",".join(chosen)] if chosen else []
        return command

    def read(self, cells: Sequence[Cell], done: Finished) -> dict[Cell, float]:
        try:
            self.report = report = msgspec.json.decode(done.output, type=Report)
        except msgspec.DecodeError as error:
            raise RunFailed(f"deepwell bench printed no report: {error}") from None
        found = {(result.measure, result.size): result.median for result in report.results}
        return _of(cells, {cell: found[key] for cell in cells if (key := (cell.measure, cell.size)) in found})

    def note(self, cell: Cell) -> str | None:
        return None


class Llama:
    """llama.cpp, or ik_llama.cpp where llama-bench knows how to repack at run time, with each one's best flags."""

    def __init__(self, name: str, bench: Path, model: Path, plan: Plan, threads: int) -> None:
        self.name = name
        self._bench, self._batched = bench, bench.with_name("llama-batched-bench")
        self._plan, self._model, self._threads = plan, ["-m", str(model.absolute())], ["-t", str(threads)]
        flags = _help(bench)
        self._ik = "--run-time-repack" in flags
        self._deep = "--n-depth" in flags
        self._latent = architecture(model) == "deepseek2"
        if "streams" in plan.measures and not _runs(self._batched):
            raise ConfigError(f"--compare {name}: streams need {self._batched}, which is missing or cannot be run")

    def command(self, cells: Sequence[Cell]) -> list[str]:
        measures = {cell.measure for cell in cells}
        if "streams" in measures:
            return self._batched_command([cell.size for cell in cells])
        command = [str(self._bench), *self._model, *self._threads, "-r", "1", "-o", "json"]
        command += ["-fa", "1", "-rtr", "1", *(["-mla", "3"] if self._latent else [])] if self._ik else []
        if "load" in measures:
            return [*command, "-p", "1", "-n", "0", *(["-w", "0"] if self._ik else ["--no-warmup"])]
        tokens = str(self._plan.decode_tokens)
        if "depth" not in measures:
            prompts = ",".join(str(cell.size) for cell in cells if cell.measure == "prefill")
            return [*command, "-p", prompts or "0", "-n", tokens if "decode" in measures else "0"]
        depths = [str(cell.size) for cell in cells]
        if self._deep:
            return [*command, "-p", "0", "-n", tokens, "-d", ",".join(depths)]
        return [*command, "-p", "0", "-n", "0", *(part for depth in depths for part in ("-gp", f"{depth},{tokens}"))]

    def _batched_command(self, streams: Sequence[int]) -> list[str]:
        tokens = self._plan.decode_tokens
        size = max(streams) * (SHORT_PROMPT + tokens)
        command = [str(self._batched), *self._model, *self._threads, "-c", str(size), "-b", "2048", "-ub", "512"]
        command += ["-fa", "on", "-rtr", *(["-mla", "3"] if self._latent else [])] if self._ik else []
        return [*command, "-npp", str(SHORT_PROMPT), "-ntg", str(tokens), "-npl", ",".join(map(str, streams))]

    def read(self, cells: Sequence[Cell], done: Finished) -> dict[Cell, float]:
        if cells[0].measure == "load":
            return {}
        if cells[0].measure == "streams":
            return _of(cells, dict(_batched_rows(done.output + done.errors)))
        return _of(cells, dict(_bench_rows(done.output)))

    def note(self, cell: Cell) -> str | None:
        return SAME_EXPERTS if self._ik and self._latent and cell.measure == "streams" else None


def find_peer(option: str, model: Path, plan: Plan, threads: int) -> Llama:
    """The engine of a --compare NAME=PATH. Raises ConfigError saying what is missing."""
    name, given, path = option.partition("=")
    if not (name and given and path):
        raise ConfigError(f"--compare {option}: must be NAME=PATH, with the folder of a build's programs")
    bench = Path(os.path.expanduser(path))
    if bench.is_dir():
        bench /= "llama-bench"
    if not _runs(bench):
        raise ConfigError(f"--compare {name}: {bench} is missing or cannot be run; PATH is a build's bin folder")
    return Llama(name, bench.resolve(), model, plan, threads)


def architecture(model: Path) -> str | None:
    """The architecture a GGUF file names, if it is one and says so near its beginning."""
    key = b"general.architecture"
    try:
        with open_regular(model) as file:
            head = file.read(4096)
    except OSError:
        return None
    place = head.find(key) + len(key)
    if not head.startswith(b"GGUF") or place < len(key) or len(head) < place + 12:
        return None
    kind, length = struct.unpack_from("<IQ", head, place)
    text = head[place + 12 : place + 12 + min(length, 64)]
    return text.decode("ascii", "replace") if kind == 8 else None


def _bench_rows(output: str) -> Iterator[tuple[Cell, float]]:
    """llama-bench -o json: an array of tests. llama.cpp gives a depth, ik_llama.cpp a label tgN@ppN."""
    start, end = output.find("["), output.rfind("]")
    try:
        tests = msgspec.json.decode(output[start : end + 1], type=list[_Test])
    except msgspec.DecodeError as error:
        raise RunFailed(f"llama-bench printed no JSON that can be read: {error}") from None
    for test in tests:
        if test.n_depth or "@" in test.test:
            yield Cell("depth", test.n_depth or test.n_prompt), test.avg_ts
        elif test.n_gen:
            yield Cell("decode", 1), test.avg_ts
        else:
            yield Cell("prefill", test.n_prompt), test.avg_ts


class _Test(msgspec.Struct):
    n_prompt: int
    n_gen: int
    avg_ts: float
    n_depth: int = 0
    test: str = ""


def _batched_rows(output: str) -> Iterator[tuple[Cell, float]]:
    """llama-batched-bench: a table (ik_llama.cpp: among the messages); B streams, S_TG their speed together."""
    columns: list[str] = []
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "S_TG t/s" in cells:
            columns = cells
        elif len(cells) == len(columns) > 1 and "|" in line and not cells[0].startswith("-"):
            row = dict(zip(columns, cells, strict=True))
            try:
                yield Cell("streams", int(row["B"])), float(row["S_TG t/s"])
            except (KeyError, ValueError):
                raise RunFailed(f"llama-batched-bench printed a line that cannot be read: {line}") from None


def _of(cells: Sequence[Cell], found: dict[Cell, float]) -> dict[Cell, float]:
    """What was asked for; RunFailed if something is not there."""
    missing = [cell.title for cell in cells if cell not in found and cell.measure != "load"]
    if missing:
        raise RunFailed(f"its output has no result for: {'; '.join(missing)}")
    return {cell: found[cell] for cell in cells if cell in found}


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _help(bench: Path) -> str:
    try:
        done = subprocess.run([bench, "--help"], capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{bench} --help does not work: {error}") from None
    if done.returncode:
        raise ConfigError(f"{bench} --help ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout + done.stderr
