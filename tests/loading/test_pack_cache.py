"""Packed copies: found when nothing changed, never trusted blindly, never more than allowed, never an error."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepwell.loading import pack_cache
from deepwell.loading.convert import packed_size
from deepwell.loading.load import LoadedModel, load_model
from deepwell.loading.pack import DType
from deepwell.loading.pack_cache import PackCache, Wanted, cache_folder, storing
from deepwell.ops.base import Batch
from deepwell.weights import embedded_path
from deepwell.weights.digests import Digests
from deepwell.weights.packed import PackedModel, PackedWriter
from deepwell.weights.source import open_source


class Told(list[str]):
    """A `warn` that remembers."""

    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def cache(tmp_path: Path, told: Told) -> PackCache:
    return PackCache(tmp_path / "cache", 1 << 30, told, smallest=0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded_path(), tmp_path / "model"))


def load(folder: Path, cache: PackCache, dtype: DType = "int8") -> LoadedModel:
    return load_model(folder, dtype=dtype, blocks=2, context=64, cache=cache)


def load_and_store(folder: Path, cache: PackCache, dtype: DType = "int8") -> tuple[LoadedModel, Path]:
    model = load(folder, cache, dtype)
    assert model.uncached is not None
    file = cache.store(model.uncached, model.runner.packed, threading.Event())
    assert file is not None
    return model, file


def logits(model: LoadedModel) -> np.ndarray:
    rows = np.arange(30, dtype=np.int32)
    return model.runner.run(Batch(rows + 300, rows, np.zeros_like(rows), np.zeros((1, 1), np.int32), rows))


def test_the_second_start_maps_the_copy_and_gives_the_same_bits(model: Path, cache: PackCache, told: Told) -> None:
    first, file = load_and_store(model, cache)
    second = load(model, cache)
    assert second.uncached is None
    assert (second.name, second.folder, second.dtype) == (first.name, first.folder, "int8")
    assert second.runner.fingerprint == first.runner.fingerprint
    assert np.array_equal(logits(second), logits(first))
    with pytest.raises(ValueError, match="in a mapped file"):
        second.runner.handles["embed"].fill(0, 0, np.zeros((1, first.config.hidden), np.float32))
    assert list(cache.folder.iterdir()) == [file]
    assert told == []


def test_a_copy_holds_the_prediction_module_even_if_it_was_not_loaded(model: Path, cache: PackCache) -> None:
    load_and_store(model, cache)
    copy = load_model(model, dtype="int8", blocks=2, context=64, speculate="mtp", cache=cache)
    assert copy.uncached is None
    assert copy.runner.has_draft_head


def test_moving_a_model_keeps_its_copy(model: Path, cache: PackCache) -> None:
    load_and_store(model, cache)
    assert load(Path(shutil.move(model, model.with_name("moved"))), cache).uncached is None


def test_what_decides_about_a_copy(model: Path, cache: PackCache, tmp_path: Path) -> None:
    """Another dtype, other importances or a touched file call for another one."""
    load_and_store(model, cache)
    assert load(model, cache, "int4").uncached is not None
    importance = tmp_path / "importance"
    importance.write_bytes(b"a")
    source = open_source(model)
    names = {cache._file(Wanted(source, dtype, file)) for dtype in ("int4", "int8") for file in (None, importance)}
    importance.write_bytes(b"b")
    names.add(cache._file(Wanted(source, "int4", importance)))
    assert len(names) == 5
    os.utime(model / "tokenizer.json", (1, 1))
    assert load(model, cache).uncached is not None


def flip(file: Path, at: int) -> None:
    """Change a byte in place; size and mtime stay."""
    about = file.stat()
    with file.open("r+b") as out:
        out.seek(at)
        byte = out.read(1)[0]
        out.seek(at)
        out.write(bytes([byte ^ 1]))
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_a_byte_behind_every_sample_at_the_same_size_and_time_calls_for_another_copy(
    model: Path, cache: PackCache
) -> None:
    load_and_store(model, cache, "auto")
    weights = model / "model.safetensors"
    flip(weights, weights.stat().st_size - 2)
    assert load(model, cache, "auto").uncached is not None
    assert open_source(model).sample == open_source(embedded_path()).sample


def test_a_model_replaced_while_it_loads_gets_no_copy_of_the_old_one(model: Path, cache: PackCache) -> None:
    first = load(model, cache)
    assert first.uncached is not None
    weights = model / "model.safetensors"
    new = weights.with_name("new")
    shutil.copy2(weights, new)
    flip(new, weights.stat().st_size - 2)
    os.replace(new, weights)
    assert cache.store(first.uncached, first.runner.packed, threading.Event()) is not None
    assert load(model, cache).uncached is not None


def test_a_copy_records_what_the_loading_hashed(model: Path, cache: PackCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was packed for serving is not hashed again for its copy; the tokenizer is the one thing new in it."""
    loaded = load_model(model, dtype="int8", blocks=2, context=64, speculate="mtp", cache=cache)
    assert loaded.uncached is not None
    hashed: list[int] = []
    start = Digests.start
    monkeypatch.setattr(Digests, "start", lambda self, raw: (hashed.append(len(raw)), start(self, raw))[1])
    assert cache.store(loaded.uncached, loaded.runner.packed, threading.Event()) is not None
    copy = load_model(model, dtype="int8", blocks=2, context=64, speculate="mtp", cache=cache)
    assert copy.uncached is None
    assert len(hashed) == 1
    assert copy.runner.fingerprint == loaded.runner.fingerprint


@pytest.mark.parametrize("at", [0, 40, 5000, -200, -1])
def test_a_damaged_copy_is_removed_and_the_model_loads(at: int, model: Path, cache: PackCache, told: Told) -> None:
    first, file = load_and_store(model, cache)
    raw = bytearray(file.read_bytes())
    raw[at] ^= 255
    file.write_bytes(raw)
    again = load(model, cache)
    assert again.uncached is not None
    assert not file.exists()
    assert len(told) == 1
    assert f"a packed copy is removed: {file}" in told[0]
    assert np.array_equal(logits(again), logits(first))


def test_a_copy_of_another_model_is_not_used(model: Path, cache: PackCache, told: Told) -> None:
    _, int8 = load_and_store(model, cache)
    _, int4 = load_and_store(model, cache, "int4")
    os.replace(int4, int8)
    assert load(model, cache).uncached is not None
    assert told == [f"a packed copy is removed: {int8}: is no copy of {model}"]


def test_the_least_recently_used_copies_leave(model: Path, cache: PackCache) -> None:
    _, int8 = load_and_store(model, cache)
    _, int4 = load_and_store(model, cache, "int4")
    for file, when in ((int8, 1), (int4, 2)):
        os.utime(file, (when, when))
    load(model, cache)  # makes int8's the last used one
    cache.limit = int8.stat().st_size + packed_size(open_source(model), "bfloat16") + pack_cache._OVERHEAD
    _, bfloat16 = load_and_store(model, cache, "bfloat16")
    assert set(cache.folder.iterdir()) == {int8, bfloat16}
    assert sum(file.stat().st_size for file in (int8, bfloat16)) <= cache.limit


def test_what_is_not_worth_a_copy(model: Path, told: Told, tmp_path: Path) -> None:
    """Small models, those that exceed the limit, and packed files: then the folder is not even made."""
    source = open_source(model)
    for cache in (PackCache(tmp_path / "a", 1 << 40, told), PackCache(tmp_path / "a", 1000, told, smallest=0)):
        assert not cache.worth(Wanted(source, "int8"))
        assert load(model, cache).uncached is None
    assert not (tmp_path / "a").exists()
    cache = PackCache(tmp_path / "b", 1 << 30, told, smallest=0)
    _, file = load_and_store(model, cache)
    assert not cache.worth(Wanted(PackedModel(file), "auto"))
    assert told == []


def test_a_scarce_disk_is_a_warning(
    model: Path, cache: PackCache, told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    loaded = load(model, cache)
    assert loaded.uncached is not None
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert cache.store(loaded.uncached, loaded.runner.packed, threading.Event()) is None
    assert "of disk are free" in told[0]
    assert list(cache.folder.iterdir()) == []


def test_a_scarce_disk_costs_no_copy_that_is_there(
    model: Path, cache: PackCache, told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What would have to leave for the new copy stays, where the disk has no place for it even then."""
    _, old = load_and_store(model, cache)
    cache.limit = packed_size(open_source(model), "bfloat16") + pack_cache._OVERHEAD + 1000
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    loaded = load(model, cache, "bfloat16")
    assert loaded.uncached is not None
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert cache.store(loaded.uncached, loaded.runner.packed, threading.Event()) is None
    assert "of disk are free" in told[0]
    assert list(cache.folder.iterdir()) == [old]


def test_a_disk_that_fills_up_is_a_warning(
    model: Path, cache: PackCache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(model, cache)
    assert loaded.uncached is not None

    def full(fd: int, data: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert cache.store(loaded.uncached, loaded.runner.packed, threading.Event()) is None
    assert "No space left on device" in told[0]
    assert list(cache.folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_warning(model: Path, told: Told, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = PackCache(tmp_path / "file" / "cache", 1 << 30, told, smallest=0)
    loaded = load(model, cache)
    assert loaded.uncached is not None
    assert cache.store(loaded.uncached, loaded.runner.packed, threading.Event()) is None
    assert "no packed copy is kept for the next start" in told[0]


def test_leaving_ends_the_writing_and_leaves_nothing(
    model: Path, cache: PackCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(model, cache)
    assert loaded.uncached is not None
    reached, go_on = threading.Event(), threading.Event()
    add = PackedWriter.add

    def waiting(self: PackedWriter, *args: Any) -> None:
        reached.set()
        go_on.wait(60)
        add(self, *args)

    monkeypatch.setattr(PackedWriter, "add", waiting)
    with storing(cache, loaded.uncached, loaded.runner.packed) as thread:
        assert reached.wait(60)
        assert [file.suffix for file in cache.folder.iterdir()] == [".part"]
        threading.Timer(0.05, go_on.set).start()
    assert not thread.is_alive()
    assert list(cache.folder.iterdir()) == []


def test_what_killed_writers_left_is_removed(model: Path, cache: PackCache) -> None:
    """Of whatever model, and told by its lock from what is still being written, in another container too."""
    cache.folder.mkdir(parents=True)
    left, alive = (cache.folder / f".x.deepwell.w{12 * digit}.part" for digit in "01")
    left.write_text("half")
    with alive.open("w") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        _, file = load_and_store(model, cache)
        assert set(cache.folder.iterdir()) == {alive, file}


STORES = """
import sys, threading
from pathlib import Path
from deepwell.loading.load import load_model
from deepwell.loading.pack_cache import PackCache
folder, model = map(Path, sys.argv[1:])
cache = PackCache(folder, 1 << 30, sys.exit, smallest=0)
made = load_model(model, dtype="int8", blocks=2, context=64, cache=cache)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(10):
    assert made.uncached and cache.store(made.uncached, made.runner.packed, threading.Event())
"""


def test_two_processes_may_store_the_same_copy_at_once(model: Path, cache: PackCache, told: Told) -> None:
    command = [sys.executable, "-c", STORES, str(cache.folder), str(model)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    (file,) = cache.folder.iterdir()
    assert file.suffix == ".deepwell"
    found = load(model, cache)
    assert found.uncached is None
    assert told == []
    plain = load_model(model, dtype="int8", blocks=2, context=64)
    assert np.array_equal(logits(found), logits(plain))


def test_the_users_cache_folder(tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "deepwell" / "packed"
    assert cache_folder({}) == cache_folder({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache/deepwell/packed"
