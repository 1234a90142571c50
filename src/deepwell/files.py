"""Files read within bounds, and written so that they are whole or absent, whatever kills their writer, and however many
processes write in one folder.

A file grows under a name of its own beside its place, `.NAME.wXXXXXXXXXXXX.part`, and is renamed when it is on the
disk. Its writer holds a lock on it, so that what a killed one has left is told apart from what is still being written:
the next writer in the folder removes it. Where a file system knows no locks, such leftovers stay.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from deepwell.errors import DeepwellError

_DESCRIPTOR = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/(\d{1,9})")


def open_regular(path: Path) -> BufferedReader:
    """A regular file, opened to be read: a device has no end, and a pipe may never begin. Raises OSError."""
    return open(path, "rb", opener=_open_regular)


def open_given(path: Path) -> BufferedReader:
    """What a user names to be read: a regular file, or a pipe that is open already, as a shell's `<(command)` is.
    Raises OSError."""
    found = _DESCRIPTOR.fullmatch(str(path))
    number = int(found[1] or 0) if found else None
    if number is not None and stat.S_ISFIFO(os.fstat(number).st_mode):
        return open(os.dup(number), "rb")
    return open_regular(path)


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        raw = b"" if size > limit else file.read(size + 1)  # what is asked for is taken from memory first
        if size < len(raw) <= limit:
            raw += file.read(limit + 1 - len(raw))
    if max(size, len(raw)) > limit:
        raise OSError(errno.EFBIG, f"is larger than the {limit:,} bytes allowed", str(path))
    return raw


def write_whole(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, or leave what was there, as `replacing` does. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to be written by its name. It takes `path`'s place in the end, on the disk; after an
    error it is removed, and `path` is as it was.

    Of a link, the file that it names is replaced. Who may read a file that is replaced stays as it was. Raises OSError,
    also if something else than a regular file is there.
    """
    path = Path(os.path.realpath(path))
    before = _regular(path)
    remove_leftovers(path.with_name("*"))
    part, lock = _begin(path)
    try:
        yield part
        _sync(part)
        if before is not None:
            part.chmod(stat.S_IMODE(before.st_mode))
        os.replace(part, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        _name(error, path)
        raise
    finally:
        os.close(lock)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, an empty folder to be filled. The folder at `path` is moved aside, to a name ending in .before,
    until the new one has its place, and removed then; a process killed between the two leaves it there."""
    remove_leftovers(path.with_name("*"))
    part, lock = _begin(path, folder=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _sync(file)
        _swap(part, path)
        _sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        _name(error, path)
        raise
    finally:
        os.close(lock)


def _name(error: BaseException, path: Path) -> None:
    """A full disk has no name of its own: let the error say which file was being written."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


def _swap(new: Path, path: Path) -> None:
    """Put a folder in the place of another, which comes back if that fails."""
    if not path.exists():
        os.rename(new, path)
        return
    before = path.with_name(f".{path.name}.w{secrets.token_hex(6)}.before")
    os.rename(path, before)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(before, path)
        raise
    shutil.rmtree(before, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` have left beside it; of every file in its folder, if it is called *.

    What is being written, here or by a host that shares the folder, is locked."""
    name = ".+" if path.name == "*" else re.escape(path.name)
    named = re.compile(rf"\.{name}\.w[0-9a-f]{{12}}\.part", re.DOTALL)
    found = [entry for entry in _entries(path.parent) if named.fullmatch(entry.name)]
    for part in found:
        with suppress(OSError):
            lock = os.open(part, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            finally:
                os.close(lock)


@contextmanager
def locked(path: Path, refusal: str = "") -> Iterator[None]:
    """Hold the lock file `path` (made if need be, and left there) against all other processes and threads.

    Waits for whoever holds it, or raises DeepwellError with `refusal`, if that is given. The end of a process, however
    it comes, lets go. Where a file system knows no locks, nobody is kept out. A lock that may only be read locks too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not path.exists():
            raise
        lock = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise DeepwellError(refusal) from None
        except OSError:
            pass
        yield
    finally:
        os.close(lock)


def _begin(path: Path, *, folder: bool = False) -> tuple[Path, int]:
    """A new file or folder beside `path`, and the descriptor that keeps it locked."""
    while True:
        part = path.with_name(f".{path.name}.w{secrets.token_hex(6)}.part")
        if folder:
            part.mkdir(parents=True)
            lock = os.open(part, os.O_RDONLY)
        else:
            lock = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if part.exists():
            return part, lock
        os.close(lock)  # taken for a leftover before it was locked


def _regular(path: Path) -> os.stat_result | None:
    """What is known of a file that may be replaced; None if there is none. OSError if it is no regular one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    _check_regular(path, found)
    return found


def _open_regular(name: str, flags: int) -> int:
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    try:
        _check_regular(Path(name), os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))


def _sync_folder(folder: Path) -> None:
    """Put a new name on the disk too; some file systems cannot be told to."""
    with suppress(OSError):
        _sync(folder)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
