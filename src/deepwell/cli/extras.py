"""Packages that only some commands take, and how to get them into the Python that runs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from urllib.parse import unquote, urlsplit

from deepwell.errors import DeepwellError


def pip(arguments: str) -> str:
    """A pip command for the running interpreter, whatever is on the PATH; it knows an editable checkout too."""
    return f"{shlex.quote(sys.executable)} -m pip {arguments}"


def install(extra: str) -> str:
    """The command that installs an extra."""
    return pip(f"install 'deepwell[{extra}]'")


def reinstall() -> str:
    """The command that installs Deepwell anew from where it came: a checkout, a file, or the package index."""
    with suppress(metadata.PackageNotFoundError):
        origin = json.loads(metadata.distribution("deepwell").read_text("direct_url.json") or "{}")
        if url := origin.get("url"):
            place = shlex.quote(unquote(urlsplit(url).path) if url.startswith("file:") else url)
            editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
            return pip(f"install --force-reinstall --no-deps {editable}{place}")
    return pip("install --force-reinstall --no-deps deepwell")


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Around imports: a package that is missing becomes a DeepwellError that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DeepwellError(f"{what} needs {error.name}, which is not installed: {install(extra)}") from None
