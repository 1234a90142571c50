"""Fetching from a hub on loopback: what is asked of it, what is kept, and every way in which it can go wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Asked, FakeHub, Fault
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

from deepwell.errors import ConfigError, DeepwellError, HubError
from deepwell.weights.hub import download as hub_module
from deepwell.weights.hub import http as hub_http
from deepwell.weights.hub.download import Hub, locate

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
}
WEIGHTS = bytes(range(256)) * 40
FILES = {
    "README.md": b"# a model",
    "config.json": json.dumps(CONFIG).encode(),
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b'{"bos_token": null}',
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "modeling_x.py": b"raise SystemExit",
    "original/model.safetensors": b"the same once more",
}
NEEDED = ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
NEEDED += ["tokenizer_config.json"]
SHARDED = {name: FILES[name] for name in ("config.json", "tokenizer.json")} | {
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {f"t{i}": f"model-{i:05}-of-00006.safetensors" for i in range(1, 7)}}
    ).encode(),
    **{f"model-{i:05}-of-00006.safetensors": bytes([i]) * 5000 for i in range(1, 7)},
}


class Seen:
    """A `Report` that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total = self.done = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def start(self, what: str, total: int, about: str) -> None:
        self.total = total

    def advance(self, count: int) -> None:
        self.done += count


class Place:
    """A hub and a cache, as one user has them."""

    def __init__(self, server: FakeHub, cache: Path) -> None:
        self.server, self.cache = server, cache
        self.waits: list[float] = []
        self.report = Seen()
        self.token: str | None = None
        self.timeout = 5.0

    def locate(self, name: str = "org/name", *, renew: bool = False, offline: bool = False) -> Path:
        hub = Hub(self.server.endpoint, self.cache, self.token, offline, self.timeout, self.waits.append)
        self.report = Seen()
        return locate(Path(name), self.report, hub, renew=renew)

    def fails(self, name: str = "org/name", **options: bool) -> str:
        with pytest.raises(DeepwellError) as error:
            self.locate(name, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    def parts(self) -> list[Path]:
        return list(self.cache.rglob("*.incomplete"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with FakeHub() as server:
        server.put("org/name", FILES)
        yield Place(server, tmp_path / "hub")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_only_what_is_needed_is_fetched_and_all_of_it_arrives(place: Place) -> None:
    folder = place.locate()
    assert sorted(place.server.fetched()) == NEEDED
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {name: FILES[name] for name in NEEDED}
    assert place.report.done == place.report.total == sum(len(FILES[name]) for name in NEEDED)
    assert place.waits == []
    assert place.report.notes == []


def test_equal_contents_are_fetched_once(place: Place) -> None:
    place.server.put("org/name", FILES | {"tokenizer_config.json": FILES["generation_config.json"]})
    folder = place.locate()
    assert len(place.server.fetched()) == len(NEEDED) - 1
    assert (folder / "tokenizer_config.json").read_bytes() == FILES["generation_config.json"]
    assert place.report.done == place.report.total


def test_the_cache_is_that_of_huggingface_hub(place: Place) -> None:
    """Its own library finds every file, by branch and by commit, and nothing half-fetched."""
    folder = place.locate()
    for revision in ("main", "a" * 40):
        for name in NEEDED:
            found = try_to_load_from_cache("org/name", name, cache_dir=place.cache, revision=revision)
            assert found == str(folder / name)
    assert (folder / "model.safetensors").resolve().name == digest(WEIGHTS)
    assert not place.parts()


def test_what_huggingface_hub_fetched_is_used(place: Place) -> None:
    for name in NEEDED:
        hf_hub_download("org/name", name, cache_dir=place.cache, endpoint=place.server.endpoint)
    place.server.asked.clear()
    folder = place.locate(offline=True)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert place.locate() == folder
    assert place.server.fetched() == []


def test_what_is_there_is_not_fetched_again(place: Place) -> None:
    first = place.locate()
    place.server.asked.clear()
    assert place.locate() == first
    assert place.server.paths() == ["/api/models/org/name/revision/main"]


def test_a_moved_branch_fetches_only_what_changed(place: Place) -> None:
    first = place.locate()
    place.server.put("org/name", FILES | {"generation_config.json": b'{"eos_token_id": 1}'}, commit="b" * 40)
    place.server.asked.clear()
    second = place.locate()
    assert place.server.fetched() == ["generation_config.json"]
    assert (second / "generation_config.json").read_bytes() == b'{"eos_token_id": 1}'
    assert (first / "generation_config.json").read_bytes() == b"{}"
    assert (second / "model.safetensors").samefile(first / "model.safetensors")


def test_a_pinned_commit_is_asked_for_and_later_needs_no_hub(place: Place) -> None:
    commit = place.server.commits["org/name"]
    folder = place.locate(f"org/name@{commit}")
    assert folder.name == commit
    assert f"/org/name/resolve/{commit}/config.json" in place.server.paths()
    place.server.down()
    assert place.locate(f"org/name@{commit}") == folder
    assert place.report.notes == []


def test_a_tag(place: Place) -> None:
    folder = place.locate("org/name@v1")
    assert place.server.paths()[0] == "/api/models/org/name/revision/v1"
    assert place.locate("org/name@v1", offline=True) == folder


def test_all_shards_of_an_index_and_no_other(place: Place) -> None:
    place.server.put("org/name", SHARDED | {"model-00007-of-00006.safetensors": b"stray"})
    folder = place.locate()
    assert sorted(place.server.fetched()) == sorted(SHARDED)
    assert all((folder / name).read_bytes() == content for name, content in SHARDED.items())


def test_a_gguf_quantisation_with_its_shards(place: Place) -> None:
    files = {f"Q8_0/m-Q8_0-0000{i}-of-00002.gguf": bytes([i]) * 100 for i in (1, 2)} | {"m-Q4_0.gguf": b"4"}
    place.server.put("org/name", files)
    first = place.locate("org/name:Q8_0")
    assert first.name == "m-Q8_0-00001-of-00002.gguf"
    assert sorted(place.server.fetched()) == sorted(name for name in files if "Q8_0" in name)
    assert first.with_name("m-Q8_0-00002-of-00002.gguf").read_bytes() == b"\2" * 100
    assert place.locate("org/name:Q8_0", offline=True) == first
    assert "m-Q8_0" not in place.fails("org/name:Q4_0", offline=True), "the other one was not fetched"


def test_a_path_of_this_machine_wins(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert place.locate() == Path("org/name")
    assert place.locate("no-slash") == Path("no-slash")
    assert place.locate("/org/name") == Path("/org/name")
    assert place.server.asked == []


# Without the hub


def test_a_hub_that_is_down_is_no_obstacle_to_the_second_start(place: Place) -> None:
    folder = place.locate()
    place.server.down()
    assert place.locate() == folder
    assert place.waits == [], "nobody waits for it"
    assert "cannot be reached" in place.report.notes[0]
    assert "a" * 12 in place.report.notes[0]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_hub_that_refuses_is_no_obstacle_either_but_to_pull(place: Place, status: int) -> None:
    folder = place.locate()
    place.server.faults["/revision/main"] = [Fault(status) for _ in range(9)]
    assert place.locate() == folder
    assert str(status) in place.report.notes[0]
    assert str(status) in place.fails(renew=True)


def test_a_half_fetched_newer_commit_does_not_count(place: Place) -> None:
    first = place.locate()
    place.server.put("org/name", FILES | {"model.safetensors": b"new"}, commit="b" * 40)
    place.server.faults["store:/" + digest(b"new")] = [Fault(404)]
    place.fails()
    place.server.down()
    assert place.locate() == first


def test_offline_asks_nobody(place: Place) -> None:
    said = place.fails(offline=True)
    assert "HF_HUB_OFFLINE" in said
    assert str(place.cache) in said
    folder = place.locate()
    place.server.asked.clear()
    assert place.locate(offline=True) == folder
    assert place.server.asked == []


def test_offline_with_a_shard_missing(place: Place) -> None:
    place.server.put("org/name", SHARDED)
    folder = place.locate()
    (folder / "model-00003-of-00006.safetensors").resolve().unlink()
    assert "not all of it" in place.fails(offline=True)
    place.server.asked.clear()
    place.locate()
    assert place.server.fetched() == ["model-00003-of-00006.safetensors"]


PINNED = "org/name@" + "a" * 40


@pytest.mark.parametrize(("name", "missing"), [(PINNED, "model-00001-of-00006"), ("org/name", "not all of it")])
def test_a_failed_download_offline_is_not_whole(place: Place, name: str, missing: str) -> None:
    """Of a pinned commit there is no ref that only a whole download writes: its files themselves have to be counted."""
    place.server.put("org/name", SHARDED)
    place.server.faults["store:/" + digest(SHARDED["model-00004-of-00006.safetensors"])] = [Fault(404)]
    place.fails(name)
    for thread in threading.enumerate():  # of the failed download: they end with the request that they are at
        if thread.name == "hub":
            thread.join(20)
    place.server.asked.clear()
    said = place.fails(name, offline=True)
    assert missing in said
    assert "HF_HUB_OFFLINE" in said
    assert place.server.asked == []
    folder = place.locate(name)
    assert {file.name for file in folder.iterdir()} == set(SHARDED)
    assert place.locate(name, offline=True) == folder


KILLED = """
import sys
from pathlib import Path
from test_hub import Seen
from deepwell.weights.hub.download import Hub, locate
locate(Path(sys.argv[1]), Seen(), Hub(sys.argv[2], Path(sys.argv[3])))
"""


def test_a_killed_download_of_a_pinned_commit_is_not_whole(place: Place) -> None:
    place.server.faults["store:/" + digest(WEIGHTS)] = [Fault(stall=3000)]
    command = [sys.executable, "-c", KILLED, PINNED, place.server.endpoint, place.cache]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "HF_HUB_OFFLINE": "0"}
    with subprocess.Popen(command, env=environment) as process:
        deadline = time.monotonic() + 60
        while [part.stat().st_size for part in place.parts()] != [3000]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    assert "missing: model.safetensors)" in place.fails(PINNED, offline=True)
    folder = place.locate(PINNED)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert place.server.asked[-1].range == "bytes=3000-"
    assert place.locate(PINNED, offline=True) == folder


@pytest.mark.parametrize("lost", NEEDED)
def test_whatever_file_of_a_pinned_commit_is_missing_is_fetched_or_named(place: Place, lost: str) -> None:
    """Also those that a model can do without, which change what it says: a template, the ends of its answers."""
    folder = place.locate(PINNED)
    place.server.asked.clear()
    for damage in (Path.unlink, lambda file: file.write_bytes(FILES[lost][:-1])):
        damage((folder / lost).resolve())
        assert lost in place.fails(PINNED, offline=True)
        assert place.locate(PINNED) == folder
        assert (folder / lost).read_bytes() == FILES[lost]
        assert place.locate(PINNED, offline=True) == folder
    assert place.server.fetched() == [lost, lost]


def test_a_pinned_commit_that_another_tool_fetched_partly_is_completed(place: Place) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        hf_hub_download(
            "org/name", name, cache_dir=place.cache, endpoint=place.server.endpoint, revision=PINNED.partition("@")[2]
        )
    place.server.asked.clear()
    folder = place.locate(PINNED)
    others = ["chat_template.jinja", "generation_config.json", "tokenizer_config.json"]
    assert sorted(place.server.fetched()) == others
    assert {file.name for file in folder.iterdir()} == set(NEEDED)
    place.server.asked.clear()
    assert place.locate(PINNED) == folder
    assert place.server.asked == [], "now it is known to be whole"


def test_a_quantisation_that_is_there_does_not_stand_for_the_model(place: Place) -> None:
    place.server.put("org/name", FILES | {"m-Q8_0.gguf": b"8" * 100})
    assert place.locate(PINNED + ":Q8_0").name == "m-Q8_0.gguf"
    assert "config.json, tokenizer.json" in place.fails(PINNED, offline=True)
    assert (place.locate(PINNED) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"\xff"])
def test_a_damaged_listing_is_asked_for_again(place: Place, damage: bytes) -> None:
    folder = place.locate(PINNED)
    (listing,) = place.cache.rglob("listings/*.json")
    whole = listing.read_bytes()
    listing.write_bytes(damage)
    assert place.locate(PINNED, offline=True) == folder
    assert place.locate(PINNED) == folder
    assert listing.read_bytes() == whole


def test_a_hub_that_cannot_be_reached_the_first_time(place: Place) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        place.server.endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        said = place.fails()
    assert "org/name is neither a file nor a folder here" in said
    assert "cannot be reached" in said
    assert place.waits == [1, 2]


# Interruptions


def test_a_hang_up_is_continued_where_it_was(place: Place) -> None:
    place.server.faults["store:/" + digest(WEIGHTS)] = [Fault(cut=3000), Fault(cut=1000)]
    folder = place.locate()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    asked = [one.range for one in place.server.asked if one.where == "store"]
    assert asked == [None, "bytes=3000-", "bytes=4000-"]
    assert place.report.done == place.report.total, "nothing is counted twice"
    assert len(place.report.notes) == 2


def test_the_next_run_goes_on_where_the_last_one_ended(place: Place) -> None:
    place.server.faults["store:/" + digest(WEIGHTS)] = [Fault(cut=1000) for _ in range(5)]
    assert "5 times in a row" in place.fails()
    assert [part.stat().st_size for part in place.parts()] == [5000]
    place.server.asked.clear()
    assert (place.locate() / "model.safetensors").read_bytes() == WEIGHTS
    assert place.server.fetched() == ["model.safetensors"]
    assert [one.range for one in place.server.asked if one.where == "store"] == ["bytes=5000-"]
    assert place.report.done == place.report.total
    assert not place.parts()


@pytest.mark.parametrize(("size", "limit"), [(18 << 20, 2 << 20), (10_240, 1000)])
def test_a_hub_that_gives_a_part_at_a_time_gives_all_of_it(place: Place, size: int, limit: int) -> None:
    """Parts that end as announced are progress, not failures: nobody waits between them, or counts them."""
    weights = b"deepwell" * (size // 8)
    place.server.put("org/name", FILES | {"model.safetensors": weights})
    place.server.range_limit = limit
    place.server.faults["store:/" + digest(weights)] = [Fault(cut=100)]
    assert digest((place.locate() / "model.safetensors").read_bytes()) == digest(weights)
    asked = [one.range for one in place.server.asked if one.where == "store"]
    assert asked == [None, *(f"bytes={at}-" for at in range(100, size, limit))]
    assert len(asked) > 8
    assert place.waits == [1], "for the one that was cut"
    assert place.report.done == place.report.total


def test_a_hub_that_gives_empty_parts_is_given_up(place: Place) -> None:
    place.server.range_limit = 0
    place.server.faults["store:/" + digest(WEIGHTS)] = [Fault(cut=100)]
    said = place.fails()
    assert "5 times in a row" in said
    assert "100 of 10240 bytes" in said


def test_progress_counts_however_a_connection_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole answer that is shorter than the file, as from a proxy, and broken ones, in turns."""
    monkeypatch.setattr(hub_http, "_PROGRESS_BYTES", 1000)
    place.server.faults["store:/" + digest(WEIGHTS)] = [
        *[Fault(cut=10)] * 3,
        Fault(whole=True, short=2000),
        *[Fault(cut=10)] * 3,
        Fault(cut=1000),
        *[Fault(cut=10)] * 3,
    ]
    assert (place.locate() / "model.safetensors").read_bytes() == WEIGHTS
    assert place.waits == [1, 2, 4, 1, 2, 4, 8, 1, 2, 4, 8]


def test_a_part_that_is_whole_is_only_checked(place: Place) -> None:
    blobs = place.cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest(WEIGHTS)}.incomplete").write_bytes(WEIGHTS)
    assert (place.locate() / "model.safetensors").read_bytes() == WEIGHTS
    assert "model.safetensors" not in place.server.fetched()


@pytest.mark.parametrize(("fault", "ranges"), [(Fault(whole=True), []), (Fault(416), [None])])
def test_a_store_without_ranges_sends_it_anew(place: Place, fault: Fault, ranges: list[None]) -> None:
    place.server.faults["store:/" + digest(WEIGHTS)] = [Fault(cut=3000), fault]
    assert (place.locate() / "model.safetensors").read_bytes() == WEIGHTS
    assert [one.range for one in place.server.asked if one.where == "store"] == [None, "bytes=3000-", *ranges]
    assert place.report.done == place.report.total


def test_a_silent_hub_is_left_and_asked_again(place: Place) -> None:
    place.timeout = 0.2
    place.server.faults["store:/" + digest(WEIGHTS)] = [Fault(stall=4000)]
    assert (place.locate() / "model.safetensors").read_bytes() == WEIGHTS
    assert "silent for 0.2 seconds" in place.report.notes[0]
    assert place.server.asked[-1].range == "bytes=4000-"


def test_a_hub_that_stays_silent_is_given_up(place: Place) -> None:
    place.timeout = 0.05
    place.server.faults["/config.json"] = [Fault(stall=0) for _ in range(9)]
    said = place.fails()
    assert "silent for 0.05 seconds, 5 times in a row" in said


def test_too_many_requests_waits_as_long_as_is_asked(place: Place) -> None:
    limit = {"RateLimit": '"api";r=0;t=55'}
    place.server.faults["/revision/main"] = [Fault(429, {"Retry-After": "7"}), Fault(429, limit)]
    place.server.faults["/config.json"] = [Fault(429)]
    place.locate()
    assert place.waits == [7, 55, 1]
    assert "too many requests" in place.report.notes[0]


def test_too_many_requests_for_ever(place: Place) -> None:
    place.server.faults["/revision/main"] = [Fault(429, {"Retry-After": "3"}) for _ in range(99)]
    assert "429" in place.fails()
    assert place.waits == [3, 3]


def test_a_wait_of_an_hour_is_not_waited_for(place: Place) -> None:
    place.server.faults["/revision/main"] = [Fault(429, {"Retry-After": "3600"})]
    assert "wait 3600 seconds" in place.fails()
    assert place.waits == []


def test_a_failing_hub_is_tried_again_ever_later(place: Place) -> None:
    place.server.faults["/tokenizer.json"] = [Fault(503), Fault(500), Fault(502), Fault(504)]
    place.locate()
    assert place.waits == [1, 2, 4, 8]


# Contents that cannot be trusted


def test_a_wrong_checksum_removes_the_file(place: Place) -> None:
    place.server.faults["store:/" + digest(WEIGHTS)] = [Fault(flip=True)]
    said = place.fails()
    assert "model.safetensors" in said
    assert digest(WEIGHTS) in said
    assert "removed" in said
    assert not place.parts()
    assert (place.locate() / "model.safetensors").read_bytes() == WEIGHTS


def test_a_wrong_checksum_of_a_small_file(place: Place) -> None:
    place.server.faults["/config.json"] = [Fault(flip=True)]
    assert "config.json arrived with the checksum" in place.fails()


def test_a_damaged_part_is_found_out(place: Place) -> None:
    blobs = place.cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest(WEIGHTS)}.incomplete").write_bytes(b"x" * 100)
    assert "checksum" in place.fails()
    assert (place.locate() / "model.safetensors").read_bytes() == WEIGHTS


def test_a_part_longer_than_the_file_is_dropped(place: Place) -> None:
    blobs = place.cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest(WEIGHTS)}.incomplete").write_bytes(WEIGHTS + b"more")
    assert (place.locate() / "model.safetensors").read_bytes() == WEIGHTS


def test_more_bytes_than_promised_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.server, "by_digest", lambda digest: WEIGHTS + b"more")
    assert "more than the 10240 bytes it promised" in place.fails()


def test_names_that_lead_elsewhere_are_refused(place: Place, tmp_path: Path) -> None:
    place.server.put("org/name", {"../../../evil.gguf": b"x"})
    assert "refused" in place.fails()
    index = json.dumps({"weight_map": {"t": "../../evil.safetensors"}}).encode()
    place.server.put("org/name", SHARDED | {"model.safetensors.index.json": index, "../../evil.safetensors": b"x"})
    assert "'../../evil.safetensors'" in place.fails()
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("commit", ["main", "../" * 13 + "x", "A" * 40])
def test_a_commit_that_is_none_is_refused(place: Place, commit: str) -> None:
    place.server.put("org/name", FILES, commit=commit)
    assert "40 hex digits" in place.fails()


def test_checksums_that_are_none_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.server, "sibling", lambda name, content: {"rfilename": name, "size": 1, "blobId": "../x"})
    assert "without its size or checksum" in place.fails()


def test_an_answer_that_is_not_a_hubs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "MAX_LISTING_BYTES", 100)
    assert "longer than 100 bytes" in place.fails()
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(place.server, "sibling", lambda name, content: {"file": name})
    assert "does not answer as a Hugging Face hub does" in place.fails()


# Refusals, said so that one knows what to do


def test_a_gated_model(place: Place) -> None:
    place.server.needs_token = "hf_secret"
    said = place.fails()
    assert "gated" in said
    assert f"{place.server.endpoint}/org/name" in said
    assert "HF_TOKEN" in said


def test_a_wrong_token_is_named_but_not_shown(place: Place) -> None:
    place.server.faults["/revision/main"] = [Fault(401)]
    place.token = "hf_wrong"
    said = place.fails()
    assert "token" in said
    assert "hf_wrong" not in said


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_without_a_reason(place: Place, status: int) -> None:
    place.server.faults["/revision/main"] = [Fault(status)]
    said = place.fails()
    assert str(status) in said
    assert "HF_TOKEN" in said


def test_no_such_repository(place: Place) -> None:
    said = place.fails("org/nmae")
    assert "org/nmae is neither a file nor a folder here" in said
    assert "no model org/nmae (404)" in said


def test_no_such_revision_lists_those_there_are(place: Place) -> None:
    assert "no revision 'v2'; it has main, v1" in place.fails("org/name@v2")


def test_no_such_file(place: Place) -> None:
    place.server.put("org/name", {"m-Q4_K_M.gguf": b"x", "m-Q8_0.gguf": b"y"})
    assert "no GGUF model 'Q4_KM' (did you mean Q4_K_M?)" in place.fails("org/name:Q4_KM")
    assert place.server.fetched() == []


def test_a_file_that_is_listed_but_gone(place: Place) -> None:
    place.server.faults["/tokenizer.json"] = [Fault(404, {"X-Error-Code": "EntryNotFound"})]
    assert "no file tokenizer.json" in place.fails()


def test_only_pickles(place: Place) -> None:
    place.server.put("org/name", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    assert "pickles" in place.fails()
    assert place.server.fetched() == []


def test_an_index_that_names_absent_shards(place: Place) -> None:
    place.server.put("org/name", {name: content for name, content in SHARDED.items() if "00004-of" not in name})
    assert "names model-00004-of-00006.safetensors, which the repository does not have" in place.fails()
    assert not [name for name in place.server.fetched() if name.endswith(".safetensors")]


def test_a_family_that_is_not_supported_is_refused_before_its_weights_come(place: Place) -> None:
    place.server.put("org/name", FILES | {"config.json": json.dumps(CONFIG | {"model_type": "mamba"}).encode()})
    with pytest.raises(ConfigError, match="mamba"):
        place.locate()
    assert "model.safetensors" not in place.server.fetched()


def test_an_address_that_is_none(place: Place) -> None:
    place.server.endpoint = "hub.example"
    assert "HF_ENDPOINT is 'hub.example'" in place.fails()


# The token


def test_the_token_goes_to_the_hub_and_nowhere_else(place: Place) -> None:
    place.server.needs_token = place.token = "hf_secret"
    place.locate()
    tokens = {(one.where, one.token) for one in place.server.asked}
    assert tokens == {("hub", "Bearer hf_secret"), ("store", None)}
    kept = [file for file in place.cache.rglob("*") if file.is_file()]
    assert not any(b"hf_secret" in file.read_bytes() for file in kept)


def test_a_token_that_cannot_be_one_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sécret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HubError, match="holds characters that no token has") as error:
        Hub.of_environment()
    assert "cret" not in str(error.value)


# The disk


def test_too_little_room_is_said_before_the_weights_come(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(hub_module, "_SPARE_BYTES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 5000))
    said = place.fails()
    assert "GB more" in said
    assert "HF_HOME" in said
    assert "model.safetensors" not in place.server.fetched()


def test_a_disk_that_fills_up_keeps_what_came(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write = hub_http._Part.write

    def full(part: hub_http._Part, chunk: bytes) -> None:
        if part.have + len(chunk) > 6000:
            write(part, chunk[: 6000 - part.have])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(part, chunk)

    monkeypatch.setattr(hub_http._Part, "write", full)
    assert "is full" in place.fails()
    assert [part.stat().st_size for part in place.parts()] == [6000]
    monkeypatch.setattr(hub_http._Part, "write", write)
    place.locate()
    assert place.server.asked[-1] == Asked("store", f"/{digest(WEIGHTS)}", None, "bytes=6000-")


def test_a_cache_that_cannot_be_written(place: Place, tmp_path: Path) -> None:
    place.cache.write_text("a file where the folder should be")
    assert "cannot write" in place.fails()
