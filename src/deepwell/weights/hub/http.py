"""Talking to a hub: what a repository holds, and its files, through every failure that may pass.

huggingface_hub gives the session (proxies, certificates), the token and the addresses. The transfer itself is here: the
library's own starts a file anew when a run was interrupted, and compares sizes but no checksums.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

import msgspec
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import get_session, httpx, parse_ratelimit_headers

from deepwell import __version__
from deepwell.errors import HubError
from deepwell.weights.hub.files import MAX_BYTES, MAX_LISTING_BYTES, Reference, is_commit

MAX_WAIT = 120
"""The longest that a hub may ask us to wait, in seconds."""
_PROGRESS_BYTES = 1 << 20
"""A connection that brought this much was worth having: failures are counted anew."""
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PASSING = (408, 425, 429, 500, 502, 503, 504)

Result = TypeVar("Result")
Advance = Callable[[int], None]


class Entry(msgspec.Struct, frozen=True):
    """A file of a repository. `digest` is the sha256 of a large file, or git's sha1 of a small one; `size` is -1 where
    the list does not say it."""

    name: str
    size: int
    digest: str

    def checked(self, reference: Reference) -> Entry:
        """Itself, if what arrives can be checked against it. Raises HubError."""
        if not 0 <= self.size <= MAX_BYTES or not _DIGEST.fullmatch(self.digest):
            raise HubError(f"{reference}: the hub lists {self.name} without its size or checksum; it cannot be trusted")
        return self

    def hasher(self) -> Any:
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)


class Listing(msgspec.Struct, frozen=True):
    """What a repository holds at one commit."""

    commit: str
    entries: dict[str, Entry]
    licence: str | None = None
    """As the hub tags it: mit, apache-2.0, other."""


class Remote(msgspec.Struct, frozen=True):
    """A hub. `say` is told what is waited for; `sleep` waits, in seconds; `timeout` bounds every silence."""

    endpoint: str
    token: str | None
    timeout: float
    say: Callable[[str], None]
    sleep: Callable[[float], None]
    asked: int = 3
    """How often a list is asked for."""
    attempts: int = 5
    """How often a file is tried without progress."""

    def listing(self, reference: Reference, attempts: int | None = None) -> Listing:
        """The files of a repository, with sizes and checksums. Raises HubError."""
        url = f"{self.endpoint}/api/models/{reference.repo}/revision/{quote(reference.revision, safe='')}?blobs=true"
        raw = self._persist(lambda: self._read(url, reference), attempts or self.asked)
        try:
            info = msgspec.json.decode(raw, type=_Info)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HubError(f"{self.endpoint} does not answer as a Hugging Face hub does: {error}") from None
        if not is_commit(info.sha):
            raise HubError(f"{self.endpoint} names the commit of {reference} {info.sha!r}; it must be 40 hex digits")
        licences = (tag.removeprefix("license:") for tag in info.tags if tag.startswith("license:"))
        return Listing(info.sha, {file.name: _entry(file) for file in info.files}, next(licences, None))

    def sized(self, reference: Reference, commit: str, entry: Entry) -> Entry:
        """The same with its size, asked for where the list does not say it. Raises HubError."""
        if entry.size >= 0:
            return entry
        url = hf_hub_url(reference.repo, entry.name, revision=commit, endpoint=self.endpoint)
        told = self._persist(lambda: self._length(url, reference, entry.name), self.asked)
        return Entry(entry.name, told, entry.digest)

    def fetch(
        self, reference: Reference, commit: str, entry: Entry, part: Path, advance: Callable[[int], None]
    ) -> None:
        """Bring a file into `part`, going on after what it already holds, and check it. Raises HubError.

        `advance` is told every byte that counts, also those found in `part`, and negative ones when they are dropped.
        """
        url = hf_hub_url(reference.repo, entry.name, revision=commit, endpoint=self.endpoint)
        with _writing(part), _Part(part, entry, advance) as file:
            kept = "; what came is kept, and the same command goes on"
            self._persist(lambda: self._receive(url, reference, file), self.attempts, kept)
            digest = file.digest()
        if digest != entry.digest:
            part.unlink(missing_ok=True)
            advance(-entry.size)
            raise HubError(
                f"{reference}: {entry.name} arrived with the checksum {digest} and the hub promised {entry.digest}; "
                "what came is removed: try again, and if it stays so, the hub or a proxy before it is at fault"
            )

    def _persist(self, act: Callable[[], Result], attempts: int, after: str = "") -> Result:
        """Do it until it works; what may pass is tried again, a bounded number of times without progress.

        `after` is said when it is given up.
        """
        failed = 0
        while True:
            try:
                return act()
            except _Passing as trouble:
                failed = 1 if trouble.progress >= _PROGRESS_BYTES else failed + 1
                if failed >= attempts:
                    tried = f", {attempts} times in a row" if attempts > 1 else ""
                    raise HubError(f"{trouble}{tried}{after}") from None
                wait = min(2.0 ** (failed - 1), 8.0) if trouble.wait is None else trouble.wait
                if wait > MAX_WAIT:
                    raise HubError(f"{trouble}; it asks to wait {wait:g} seconds: try again then{after}") from None
                self.say(f"{trouble}; trying again in {wait:g} s ({failed} of {attempts - 1})")
                self.sleep(wait)

    def _read(self, url: str, reference: Reference) -> bytes:
        raw = bytearray()
        with self._get(url, reference) as response:
            for chunk in response.iter_bytes():
                raw += chunk
                if len(raw) > MAX_LISTING_BYTES:
                    raise HubError(f"{self.endpoint}: its list of {reference} is longer than {MAX_LISTING_BYTES} bytes")
        return bytes(raw)

    def _length(self, url: str, reference: Reference, name: str) -> int:
        """What the answer to a request for a file says its length is; -1 if nothing. It is not read."""
        with self._get(url, reference, name=name) as response:
            length = response.headers.get("content-length", "")
        return int(length) if re.fullmatch("[0-9]{1,15}", length) else -1

    def _receive(self, url: str, reference: Reference, file: _Part) -> None:
        """The rest of a file: one connection after another while each brings the part that its hub gives at a time."""
        while (before := file.have) < file.entry.size:
            try:
                self._receive_part(url, reference, file)
            except _Passing as trouble:
                trouble.progress = file.have - before
                if trouble.status == 416:
                    file.restart()
                raise

    def _receive_part(self, url: str, reference: Reference, file: _Part) -> None:
        """One connection's worth of a file: the rest of it, or a part that the hub has announced as one."""
        before, entry = file.have, file.entry
        with self._get(url, reference, before, entry.name) as response:
            if before and response.status_code == 200:  # it knows no ranges
                file.restart()
            elif _start_of(response) != before:
                raise HubError(f"{self.endpoint} sends another part of {entry.name} than was asked for")
            for chunk in response.iter_bytes():
                file.write(chunk)
        as_announced = response.status_code == 206 and file.have > before
        if file.have < entry.size and not as_announced:
            raise _Passing(f"{self.endpoint} ended {entry.name} after {file.have} of {entry.size} bytes")

    @contextmanager
    def _get(self, url: str, reference: Reference, start: int = 0, name: str = "") -> Iterator[Any]:
        """A response of 200 or 206, its body not yet read; the session drops the token when it changes hosts."""
        headers = {"user-agent": f"deepwell/{__version__}", "accept-encoding": "identity"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        if start:
            headers["range"] = f"bytes={start}-"
        try:
            with get_session().stream("GET", url, headers=headers, timeout=self.timeout) as response:
                if response.status_code not in (200, 206):
                    raise self._refusal(response, reference, name)
                yield response
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise HubError(f"HF_ENDPOINT is {self.endpoint!r}: {error}") from None
        except httpx.TimeoutException:
            raise _Passing(f"{self.endpoint} was silent for {self.timeout:g} seconds") from None
        except httpx.ConnectError as error:
            raise _Passing(f"{self.endpoint} cannot be reached ({error})") from None
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise _Passing(f"{self.endpoint} broke the connection ({error or type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise HubError(f"{self.endpoint}: {error or type(error).__name__}") from None

    def _refusal(self, response: Any, reference: Reference, name: str) -> Exception:
        """What a status that is not 200 means, and what to do."""
        status, code, repo = response.status_code, response.headers.get("x-error-code", ""), reference.repo
        where = f"{self.endpoint}/{repo}"
        if status in _PASSING or status == 416:
            return _Passing(f"{response.url.host} answers {status} ({_MEANINGS[status]})", status, _wait(response))
        if code == "GatedRepo":
            return HubError(
                f"{repo} is gated ({status}): accept its licence at {where} and set HF_TOKEN to that account's token"
            )
        if status == 401 and self.token:
            return HubError(
                f"{self.endpoint} does not know the token of HF_TOKEN or {constants.HF_TOKEN_PATH} (401), or "
                f"{repo} does not exist; renew the token, or remove it for a public model"
            )
        if status in (401, 403):
            said = "the token may not read it" if self.token else "it is private, gated, or does not exist"
            return HubError(
                f"{self.endpoint} refuses {repo} ({status}): {said}; check the name, accept the licence at {where} if "
                "there is one, and set HF_TOKEN to a token that may read it"
            )
        if status == 404 and code == "RevisionNotFound":
            return HubError(f"{repo} has no revision {reference.revision!r}{self._revisions(reference)}")
        if status == 404 and name:
            return HubError(f"{repo} has no file {name} at {reference.revision}, though the hub lists it")
        if status == 404:
            return HubError(f"{self.endpoint} has no model {repo} (404); check the name: capitals count")
        return HubError(f"{self.endpoint} answers {status} for {repo}{f', file {name}' if name else ''}")

    def _revisions(self, reference: Reference) -> str:
        """The branches and tags there are, to suggest them; nothing if the hub does not say."""
        try:
            raw = self._read(f"{self.endpoint}/api/models/{reference.repo}/refs", Reference(reference.repo))
            refs = msgspec.json.decode(raw, type=_Refs)
        except (_Passing, HubError, msgspec.DecodeError, UnicodeDecodeError):
            return "; see its branches and tags on the hub"
        names = [ref.name for ref in (*refs.branches, *refs.tags) if ref.name.isprintable()]
        return f"; it has {', '.join(names[:20])}"


class _Passing(Exception):
    """A failure that may pass. `wait` is how long the hub asks to wait; `progress` how many bytes came before."""

    def __init__(self, text: str, status: int = 0, wait: float | None = None) -> None:
        super().__init__(text)
        self.status, self.wait, self.progress = status, wait, 0


class _Part:
    """A file on its way: what is there, hashed as it grows."""

    def __init__(self, path: Path, entry: Entry, advance: Advance) -> None:
        self.entry, self.have = entry, 0
        self._path, self._advance, self._hasher = path, advance, entry.hasher()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Part:
        self._file = self._path.open("r+b" if self._path.exists() else "w+b", buffering=0)
        while chunk := self._file.read(1 << 20):
            self._count(chunk)
            if self.have > self.entry.size:
                self.restart()
                break
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._file is not None
        self._file.close()

    def write(self, chunk: bytes) -> None:
        assert self._file is not None
        if self.have + len(chunk) > self.entry.size:
            self.restart()
            raise HubError(f"{self.entry.name}: the hub sends more than the {self.entry.size} bytes it promised")
        view = memoryview(chunk)
        while view:
            view = view[self._file.write(view) :]
        self._count(chunk)

    def restart(self) -> None:
        """Drop what is there."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._advance(-self.have)
        self.have, self._hasher = 0, self.entry.hasher()

    def digest(self) -> str:
        assert self._file is not None
        os.fsync(self._file.fileno())
        return str(self._hasher.hexdigest())

    def _count(self, chunk: bytes) -> None:
        self._hasher.update(chunk)
        self.have += len(chunk)
        self._advance(len(chunk))


class _Lfs(msgspec.Struct):
    sha256: str
    size: int | None = None


class _File(msgspec.Struct, rename={"name": "rfilename", "blob": "blobId"}):
    name: str
    size: int | None = None
    blob: str | None = None
    lfs: _Lfs | None = None


class _Info(msgspec.Struct, rename={"files": "siblings"}):
    sha: str
    files: list[_File]
    tags: list[str] = []


class _Ref(msgspec.Struct):
    name: str


class _Refs(msgspec.Struct):
    branches: list[_Ref] = []
    tags: list[_Ref] = []


_MEANINGS = {408: "it waited too long", 416: "not this part", 425: "too early", 429: "too many requests"}
_MEANINGS |= {500: "an error of its own", 502: "a bad gateway", 503: "overloaded or down", 504: "a gateway timed out"}


def _entry(file: _File) -> Entry:
    size, digest = (file.lfs.size, file.lfs.sha256) if file.lfs else (file.size, file.blob)
    size = file.size if size is None else size
    return Entry(file.name, -1 if size is None else size, digest or "")


def _start_of(response: Any) -> int:
    """The offset that a response begins at: 0 for a whole file."""
    if response.status_code != 206:
        return 0
    match = re.match(r"bytes ([0-9]{1,15})-", response.headers.get("content-range", ""))
    return int(match[1]) if match else 0


def _wait(response: Any) -> float | None:
    """Seconds that the hub asks to wait, by Retry-After or its rate limit's reset."""
    asked = response.headers.get("retry-after", "").strip()
    if asked.isascii() and asked.isdigit():
        return float(asked[:9])
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    """Turns failures of the disk into errors for people."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HubError(
                f"the disk of {part.parent} is full; what came is kept: free some space, or set HF_HOME to a larger "
                "disk, and the same command goes on"
            ) from None
        raise HubError(f"cannot write {part}: {error.strerror or error}") from None
