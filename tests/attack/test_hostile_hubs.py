"""Hubs that lie: whatever one says, files arrive as promised or a sentence says why not, and nothing outside of the
cache is named, linked to, moved or written.

DEEPWELL_SEED chooses the lies.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import FakeHub, Fault
from huggingface_hub import constants
from seeds import rounds
from test_hub import FILES, NEEDED, Seen

from deepwell.errors import DeepwellError, HubError
from deepwell.weights.hub import http
from deepwell.weights.hub.download import Hub, locate

ROUNDS = 60
SECRET = b"the user's own"
TEMPLATE = "additional_chat_templates/tool_use.jinja"


class Lair:
    """A hub whose list is what `lie` makes of the honest one, a cache, and a file of the user beside it."""

    def __init__(self, server: FakeHub, folder: Path) -> None:
        self.server, self.cache, self.secret = server, folder / "cache", folder / "secret"
        self.secret.write_bytes(SECRET)
        self.said: list[str] = []
        self.lie: Callable[[dict[str, Any]], object] = lambda info: info

    def locate(self, offline: bool = False) -> Path:
        hub = Hub(self.server.endpoint, self.cache, offline=offline, timeout=2.0, sleep=lambda seconds: None)
        return locate(Path("org/name"), Seen(), hub)

    def files(self) -> dict[str, bytes] | None:
        """What arrives, by name; None if the hub was refused, with a sentence of a line."""
        try:
            folder = self.locate()
        except DeepwellError as error:
            self.said.append(str(error))
            return None
        finally:
            self.check()
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def check(self) -> None:
        """Nothing reaches out of the cache, and refusals are a line each."""
        assert not any("\n" in said or len(said) > 2000 for said in self.said)
        assert self.secret.read_bytes() == SECRET
        assert not self.secret.is_symlink()
        assert {entry.name for entry in self.secret.parent.iterdir()} <= {"cache", "secret"}
        for place in self.cache.rglob("*"):
            assert place.resolve().is_relative_to(self.cache), place


@pytest.fixture
def lair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lair]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with FakeHub() as server:
        server.put("org/name", FILES | {TEMPLATE: b"{{ tools }}"})
        lair = Lair(server, tmp_path)
        server.lie = lambda info: lair.lie(info)
        yield lair


def entry(info: dict[str, Any], name: str) -> dict[str, Any]:
    return next(file for file in info["siblings"] if file["rfilename"] == name)


def names_to_break(secret: Path) -> list[Any]:
    return [
        str(secret),
        "../../../../secret",
        "../" * 12 + str(secret)[1:],
        "blobs/../../../secret",
        "a\0b",
        "..",
        ".",
        "",
        "/",
        "x" * 300,
        "x/" * 2000,
        "\u202e\x1b[2J",
        "C:\\secret",
        "config.json/inner",
        "f" * 40 + "\n",
        "F" * 40,
        "f" * 39,
        0,
        -1,
        2**63,
        10**400,
        1.5,
        True,
        None,
        [],
        {},
        ["a"],
        {"sha256": str(secret), "size": 3, "pointerSize": 1},
    ]


@pytest.mark.parametrize("field", ["blobId", "sha256"])
def test_a_checksum_that_is_a_path_names_no_file(field: str, lair: Lair) -> None:
    name = "config.json" if field == "blobId" else "model.safetensors"
    for lie in (value for value in names_to_break(lair.secret) if isinstance(value, str)):
        for size in (len(FILES[name]), len(SECRET)):

            def tell(info: dict[str, Any], lie: str = lie, size: int = size) -> dict[str, Any]:
                file = entry(info, name)
                (file if field == "blobId" else file["lfs"]).update({field: lie, "size": size})
                return info

            lair.lie = tell
            assert lair.files() is None


def test_a_file_without_a_size_is_fetched_and_found_again(lair: Lair) -> None:
    for name in ("chat_template.jinja", "model.safetensors"):

        def tell(info: dict[str, Any], name: str = name) -> dict[str, Any]:
            file = entry(info, name)
            file.pop("size")
            if "lfs" in file:
                file["lfs"].pop("size")
            return info

        lair.lie = tell
        found = lair.files()
        assert found is not None
        assert found == {name: FILES[name] for name in NEEDED} | {TEMPLATE: b"{{ tools }}"}
        assert lair.locate(offline=True) == lair.locate()
        (lair.locate() / name).unlink()
        with pytest.raises(HubError, match=name):
            lair.locate(offline=True)
        assert lair.files() == found


@pytest.mark.parametrize("length", ["", "-1", "1e3", "9" * 15, "9" * 4000, "٣"])
def test_a_size_that_nobody_can_tell_is_no_reason_to_leave_a_file_out(length: str, lair: Lair) -> None:
    lair.lie = lambda info: entry(info, "chat_template.jinja").pop("size") and info
    lair.server.faults["chat_template.jinja"] = [Fault(length=length)] * 9
    assert lair.files() is None


def test_a_length_of_thousands_of_digits_is_a_sentence(lair: Lair) -> None:
    """The offsets that a hub sends with a part of a file."""
    lair.server.faults["store:"] = [Fault(cut=3000), Fault(begin="9" * 5000)]
    assert lair.files() is None


def changed(info: dict[str, Any], chance: random.Random, secret: Path) -> dict[str, Any]:
    """The list with one to three of its values, keys or files replaced."""
    lies = names_to_break(secret)
    for _ in range(chance.randint(1, 3)):
        files = [file for file in info.get("siblings") or [] if isinstance(file, dict)]
        places = [info, *files, *(file["lfs"] for file in files if isinstance(file.get("lfs"), dict))]
        place = chance.choice(places)
        if not place:
            continue
        key = chance.choice(sorted(place))
        if chance.random() < 0.15:
            del place[key]
        elif chance.random() < 0.2 and files:
            info["siblings"] += [dict(chance.choice(files), **{key: chance.choice(lies)})]
        else:
            place[key] = chance.choice(lies)
    return info


def test_lists_with_lies_in_them(lair: Lair) -> None:
    honest = {name: FILES[name] for name in NEEDED} | {TEMPLATE: b"{{ tools }}"}
    for number, chance in enumerate(rounds(ROUNDS)):
        lair.lie = lambda info, chance=chance: changed(info, chance, lair.secret)  # type: ignore[misc]
        lair.cache = lair.secret.parent / "cache" / str(number)
        found = lair.files()
        for name, content in (found or {}).items():
            assert content == honest.get(name, content)


def test_answers_that_are_no_list(lair: Lair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_LISTING_BYTES", 1 << 16)
    bodies = [b"", b"[", b"null", b"[" * 50_000, b'{"sha":', b"\xff\xfe", b'"' + b"x" * (1 << 17), b"<html>", b"1e999"]
    for raw in (*bodies, *(chance.randbytes(200) for chance in rounds(20))):
        lair.lie = lambda info, raw=raw: raw  # type: ignore[misc]
        assert lair.files() is None


def test_a_thousand_files_with_odd_names_are_left_where_they_are(lair: Lair) -> None:
    def tell(info: dict[str, Any]) -> dict[str, Any]:
        info["siblings"] += [{"rfilename": "../" * n + "x", "size": n, "blobId": "f" * 40} for n in range(1000)]
        return info

    lair.lie = tell
    assert set(lair.files() or {}) == {*NEEDED, TEMPLATE}


def test_the_index_cannot_name_files_elsewhere(lair: Lair) -> None:
    for name in (
        "../../secret",
        str(lair.secret),
        "a\0.safetensors",
        "\x1b[2J.safetensors",
        "x" * 300 + ".safetensors",
    ):
        index = json.dumps({"weight_map": {"t": name}}).encode()
        files = {"config.json": FILES["config.json"], "tokenizer.json": b"{}", "model.safetensors.index.json": index}
        lair.server.put("org/name", files | {name: b"x"})
        assert lair.files() is None


def test_what_a_folder_reads_of_it(lair: Lair) -> None:
    from deepwell.weights.tokenizer import _templates

    assert _templates(lair.locate()) == ("{{ messages }}", "{{ tools }}")
    assert os.path.islink(lair.locate() / TEMPLATE)
