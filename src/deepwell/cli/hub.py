"""MODEL as a person gives it: a place on this machine, or a name on a hub, fetched with a progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import msgspec

from deepwell.cli.terminal import visible
from deepwell.errors import HubError


@overload
def located(model: Path, *, renew: bool = False) -> Path: ...
@overload
def located(model: None, *, renew: bool = False) -> None: ...
@overload
def located(model: Path | None, *, renew: bool = False) -> Path | None: ...
def located(model: Path | None, *, renew: bool = False) -> Path | None:
    """Where the model lies on this machine, fetched first if it is a hub's. Raises HubError.

    `renew` insists on asking the hub, instead of using what was fetched before when it cannot be asked.
    """
    if model is None or model.exists():
        return model
    # Imported here so that models of this machine cost nothing more.
    from deepwell.weights.hub.download import locate

    with _downloading() as report:
        return locate(model, report, renew=renew)


def fetched(model: Path) -> Path | None:
    """Where a hub's model lies on this machine, if it was fetched before; nobody is asked."""
    from deepwell.weights.hub.download import Hub, locate

    try:
        place = locate(model, Bar(), msgspec.structs.replace(Hub.of_environment(), offline=True))
    except HubError:
        return None
    return None if place == model else place


def names_model(text: str) -> bool:
    """Whether an argument is, or is meant to be, the place of a model on this machine."""
    from deepwell.weights.gguf.reader import is_gguf
    from deepwell.weights.packed import is_packed

    path = Path(text).expanduser()
    if os.path.isdir(path):  # which a text that can be no path does not disturb
        return os.sep in text or (path / "config.json").exists()
    if os.path.isfile(path):
        return is_gguf(path) or is_packed(path)
    return path.suffix in (".gguf", ".deepwell") and not any(map(str.isspace, text))


class Bar:
    """The `Report` of a download: lines on standard error, and a bar where that is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        self.console = Console(stderr=True, highlight=False, markup=False)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._started = False
        self._task = self._progress.add_task("", total=None, visible=False)

    def note(self, text: str) -> None:
        if self.console.is_terminal:
            self.console.print(f"deepwell: {visible(text)}", soft_wrap=True)
        else:
            print(f"deepwell: {text}", file=sys.stderr, flush=True)

    def start(self, what: str, total: int) -> None:
        if not self._started:
            self._started = True
            self.note(f"fetching {what}")
            self._progress.start()
        self._progress.update(self._task, description=what, total=total, visible=True)

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def stop(self) -> None:
        self._progress.stop()


@contextmanager
def _downloading() -> Iterator[Bar]:
    bar = Bar()
    try:
        yield bar
    finally:
        bar.stop()
