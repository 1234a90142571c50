"""What a hub's cache holds, and its removal: shared blobs, unfinished downloads, and links that lead elsewhere."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import FakeHub, Fault
from huggingface_hub import constants

from deepwell.errors import HubError
from deepwell.weights.hub.download import Hub, locate
from deepwell.weights.hub.files import Reference, parse
from deepwell.weights.hub.kept import kept, remove


class Quiet:
    def note(self, text: str) -> None:
        pass

    def start(self, what: str, total: int, about: str) -> None:
        pass

    def advance(self, count: int) -> None:
        pass


class Place:
    """A hub and the cache of one user."""

    def __init__(self, server: FakeHub, cache: Path) -> None:
        self.server, self.cache = server, cache

    def fetch(self, name: str) -> Path:
        hub = Hub(self.server.endpoint, self.cache, timeout=5.0, sleep=lambda _: None)
        return locate(Path(name), Quiet(), hub)

    def names(self) -> dict[str, bool]:
        return {model.name: model.partial for model in kept(self.cache)}

    def remove(self, name: str) -> int:
        reference = parse(name)
        assert reference is not None
        return remove(self.cache, reference)


GGUF = {"x-Q4_0.gguf": b"4" * 4000, "x-Q8_0.gguf": b"8" * 8000}


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with FakeHub() as server:
        server.put("org/folder", model_folder)
        server.put("org/one", {"x-Q4_0.gguf": b"4" * 5000})
        server.put("org/two", GGUF)
        yield Place(server, tmp_path / "hub")


def test_names_are_those_that_one_may_type(place: Place) -> None:
    assert kept(place.cache) == []
    for name in ("org/folder", "org/one", "org/two:q8_0"):
        place.fetch(name)
    assert place.names() == {"org/folder": False, "org/one": False, "org/two:Q8_0": False}
    folder, one, two = kept(place.cache)
    assert (one.kind, one.size) == ("Q4_0", 5000)
    assert (two.kind, two.size) == ("Q8_0", 8000)
    assert folder.kind == "safetensors"
    for name in place.names():
        assert place.fetch(name).exists()


def test_an_unfinished_download_is_partial(place: Place) -> None:
    place.server.faults["store:"] = [Fault(status=404)] * 20
    with pytest.raises(HubError):
        place.fetch("org/folder")
    assert place.names() == {"org/folder": True}
    blobs = place.cache / "models--org--one" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / ("a" * 64 + ".incomplete")).write_bytes(b"x" * 100)
    one = kept(place.cache)[1]
    assert (one.name, one.partial, one.size) == ("org/one", True, 100)
    assert place.remove("org/one") == 100
    assert place.names() == {"org/folder": True}


def test_a_repository_goes_with_all_that_is_its(place: Place) -> None:
    place.fetch("org/folder")
    place.fetch("org/one")
    size = sum(
        file.stat().st_size for file in (place.cache / "models--org--folder").rglob("*") if not file.is_symlink()
    )
    assert place.remove("org/folder") <= size
    assert not (place.cache / "models--org--folder").exists()
    assert place.names() == {"org/one": False}


def test_one_file_of_several(place: Place) -> None:
    place.fetch("org/two:Q4_0")
    place.fetch("org/two:Q8_0")
    assert place.remove("org/two:q4_0") == 4000
    assert place.names() == {"org/two:Q8_0": False}
    assert place.fetch("org/two:Q8_0").read_bytes() == GGUF["x-Q8_0.gguf"]
    with pytest.raises(HubError, match="is not in"):
        place.remove("org/two:Q4_0")
    place.remove("org/two:Q8_0")
    assert not (place.cache / "models--org--two").exists()


def test_blobs_that_another_revision_uses_stay(place: Place) -> None:
    place.fetch("org/two:Q4_0")
    place.server.put("org/two", GGUF, commit="b" * 40)
    place.fetch("org/two:Q4_0")
    assert place.names() == {"org/two:Q4_0": False, f"org/two@{'a' * 40}:Q4_0": False}
    assert place.remove(f"org/two@{'a' * 40}") < 4000
    assert place.names() == {"org/two:Q4_0": False}
    assert place.fetch("org/two:Q4_0").read_bytes() == GGUF["x-Q4_0.gguf"]


def test_what_is_mapped_stays_valid(place: Place) -> None:
    with open(place.fetch("org/one"), "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        place.remove("org/one")
        assert mapped[:] == b"4" * 5000


@pytest.mark.parametrize("which", ["", "blobs", "snapshots", "refs"])
def test_a_cache_with_links_to_elsewhere_is_left_alone(which: str, place: Place, tmp_path: Path) -> None:
    place.fetch("org/one")
    folder = place.cache / "models--org--one"
    moved = tmp_path / "elsewhere"
    (folder / which).rename(moved)
    (folder / which).symlink_to(moved)
    before = sorted(moved.rglob("*"))
    with pytest.raises(HubError, match="is not in"):
        place.remove("org/one")
    assert sorted(moved.rglob("*")) == before
    assert place.names() == {}


def test_links_in_a_snapshot_are_removed_and_not_followed(place: Place, tmp_path: Path) -> None:
    snapshot = place.fetch("org/one").parent
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "x-Q5_0.gguf").write_bytes(b"mine")
    (snapshot / "y-Q5_0.gguf").symlink_to(mine / "x-Q5_0.gguf")
    (snapshot / "sub").symlink_to(mine)
    place.remove("org/one:Q5_0")
    assert not (snapshot / "y-Q5_0.gguf").is_symlink()
    place.remove("org/one")
    assert (mine / "x-Q5_0.gguf").read_bytes() == b"mine"


@pytest.mark.parametrize("repo", ["../x", "org/..", "org/none"])
def test_what_is_not_there(repo: str, place: Place) -> None:
    place.fetch("org/one")
    with pytest.raises(HubError, match="is not in"):
        remove(place.cache, Reference(repo))
    assert place.names() == {"org/one": False}
