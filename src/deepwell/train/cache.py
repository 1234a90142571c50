"""The cache that runs share: files made from named inputs, built once, and checked whenever they are used again.

An entry is some files and NAME.sha256, which lists them as sha256sum does and is written last. While an entry is built
or checked, its NAME.lock keeps other runs waiting, so that they find it instead of building it too.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from deepwell.files import locked, write_whole
from deepwell.train.stages import sha256_of

_log = logging.getLogger(__name__)


def kept(folder: Path, name: str, files: tuple[str, ...], make: Callable[[], Mapping[str, bytes]]) -> list[Path]:
    """Where the `files` of the entry `name` lie. `make` gives their contents if they are missing or damaged."""
    listed = folder / f"{name}.sha256"
    with locked(folder / f"{name}.lock"):
        if why := _fault(folder, listed, files):
            if listed.is_file():
                _log.warning("%s; it is made anew", why)
            listed.unlink(missing_ok=True)
            made = make()
            for file in files:
                write_whole(folder / file, made[file])
            write_whole(listed, _list({file: hashlib.sha256(made[file]).hexdigest() for file in files}))
    return [folder / file for file in files]


def _fault(folder: Path, listed: Path, files: tuple[str, ...]) -> str:
    """Why an entry cannot be used; nothing if it can."""
    try:
        digests = {file: sha256_of(folder / file) for file in files}
        whole = listed.read_bytes() == _list(digests)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return "" if whole else f"{folder / files[0]} is damaged: its digest is not the one in {listed.name}"


def _list(digests: Mapping[str, str]) -> bytes:
    return "".join(f"{digest}  {file}\n" for file, digest in digests.items()).encode()
