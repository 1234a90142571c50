"""MODEL as a person gives it: a place on this machine, a short name, or a name on a hub, fetched if need be."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import msgspec

from deepwell.cli.terminal import visible
from deepwell.cli.waiting import Wait, sized
from deepwell.errors import HubError


@overload
def located(model: Path, *, renew: bool = False) -> Path: ...
@overload
def located(model: None, *, renew: bool = False) -> None: ...
@overload
def located(model: Path | None, *, renew: bool = False) -> Path | None: ...
def located(model: Path | None, *, renew: bool = False) -> Path | None:
    """Where the model lies on this machine, fetched first if it is a hub's. Raises HubError, and ConfigError for a
    name that nothing has.

    `renew` insists on asking the hub, instead of using what was fetched before when it cannot be asked.
    """
    if model is None or model.exists():
        return model
    # Imported here so that models of this machine cost nothing more.
    from deepwell.weights.hub.download import locate

    with _downloading() as report:
        return locate(meant(model), report, renew=renew)


def meant(model: Path) -> Path:
    """What a short name stands for, as ORG/NAME[:FILE]; paths and names on a hub as they are.

    ConfigError for a word that is neither; it says which names are like it.
    """
    from deepwell.weights.hub.names import find, unknown_name

    text = model.as_posix()
    if "/" in text or text[:1] in (".", "~") or model.suffix in (".gguf", ".deepwell", ".safetensors"):
        return model
    if (known := find(text)) is None:
        raise unknown_name(text)
    return Path(known.place)


def fetched(model: Path) -> Path | None:
    """Where a hub's model lies on this machine, if it was fetched before; nobody is asked."""
    from deepwell.weights.hub.download import Hub, locate

    try:
        place = locate(model, Told(), msgspec.structs.replace(Hub.of_environment(), offline=True))
    except HubError:
        return None
    return None if place == model else place


def names_model(text: str) -> bool:
    """Whether an argument is, or is meant to be, the place of a model on this machine, or a short name."""
    from deepwell.weights.gguf.reader import is_gguf
    from deepwell.weights.hub.names import find
    from deepwell.weights.packed import is_packed

    path = Path(os.path.expanduser(text))
    if os.path.isdir(path):  # which a text that can be no path does not disturb
        return os.sep in text or (path / "config.json").exists()
    if os.path.isfile(path):
        return is_gguf(path) or is_packed(path)
    return (path.suffix in (".gguf", ".deepwell") and not any(map(str.isspace, text))) or find(text) is not None


class Told:
    """The `Report` of a download: lines on standard error, and the wait for what is fetched."""

    def __init__(self) -> None:
        self._wait: Wait | None = None
        self._done = self._total = 0
        self._lock = threading.Lock()

    def note(self, text: str) -> None:
        print(f"deepwell: {visible(text)}", file=sys.stderr, flush=True)

    def start(self, what: str, total: int, about: str) -> None:
        if self._wait is None:
            self.note(f"fetching {what}: {about}")
            self._wait = Wait("", sized)
            self._wait.__enter__()
        self._wait.what = f"fetching {what}"
        with self._lock:
            self._total = total

    def advance(self, count: int) -> None:
        assert self._wait is not None
        with self._lock:
            self._done += count
            self._wait(self._done, self._total)

    def stop(self) -> None:
        if self._wait is not None:
            self._wait.stop()


@contextmanager
def _downloading() -> Iterator[Told]:
    told = Told()
    try:
        yield told
    finally:
        told.stop()
