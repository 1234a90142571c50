"""Request bodies in: bounded, and every flaw named."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from difflib import get_close_matches
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import msgspec
from msgspec import inspect
from starlette.requests import Request

from deepwell.errors import QueueFull, RequestError
from deepwell.server.errors import BodyTooLarge, BodyTooSlow

B = TypeVar("B", bound=msgspec.Struct)

BODY_SECONDS = 30.0
"""How long a body may take to come, and a second longer for every BYTES_PER_SECOND that have come."""
BYTES_PER_SECOND = 8192
MAX_PARTS = 1 << 18
"""Texts, objects, lists and colons in a body, which take long to make objects of."""
MAX_COMMAS = 1 << 20
"""Numbers cost less, and a prompt may be a list of them."""
UPLOADS = 4
"""How many times as long as other bodies a file may be."""
BODIES_AT_ONCE = 8
"""How many of the longest bodies may be on their way together."""
KEPT_AT_ONCE = 16
"""How many of the longest bodies requests may keep together, once they are whole, until they are answered."""

_ALIKE = 0.85
"""How alike two names are, of 1, where one is a slip for the other."""
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])

_WITH_PATH = re.compile(r"(?P<reason>.*) - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`", re.DOTALL)
# A text that never ends is one too: without that, each of its quotes would be tried as a beginning.
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
_PART = re.compile(_TEXT + rb"|[\[{:]", re.DOTALL)
_COMMA = re.compile(_TEXT + b"|,", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>\w+)`")


class Bodies:
    """Reads the bodies of one server's requests: each bounded in bytes and time, all that are unfinished together, and
    all that are kept.

    `limit` is the longest body in bytes.
    """

    def __init__(self, limit: int, *, spelling: bool = True) -> None:
        """With `spelling`, an unknown field that looks like a known one is refused."""
        self._limit, self._spelling = limit, spelling
        self._held = self._kept = 0

    @asynccontextmanager
    async def kept(self, request: Request, kind: type[B]) -> AsyncIterator[B]:
        """What `read` gives, for a request that may have to wait with it. Raises QueueFull too while others keep too
        much."""
        body = await self._whole(request)
        with self._keep(len(body)):
            asked = decode(body, kind, spelling=self._spelling)
            del body
            yield asked

    async def read(self, request: Request, kind: type[B]) -> B:
        """The body of a request as a `kind`.

        Raises BodyTooLarge above the limit (reading no further), BodyTooSlow, QueueFull while too much is on its way,
        ClientDisconnect, and RequestError for anything that is not JSON of the right shape.
        """
        return decode(await self._whole(request), kind, spelling=self._spelling)

    async def _whole(self, request: Request) -> bytearray:
        """The bytes, whose number `length_of` tells from then on."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            named = media_type or "left out"
            raise RequestError(f"Content-Type must be application/json, not {named!r}", "Content-Type")
        return await self._bytes(request, self._limit)

    @asynccontextmanager
    async def raw(self, request: Request) -> AsyncIterator[bytes]:
        """The body of an upload, as it is: up to UPLOADS times as long. Raises what `kept` does."""
        body = bytes(await self._bytes(request, UPLOADS * self._limit))
        with self._keep(len(body)):
            yield body

    @contextmanager
    def _keep(self, size: int) -> Iterator[None]:
        if self._kept + size > KEPT_AT_ONCE * self._limit:
            raise QueueFull("too many requests with long bodies are waiting; try again")
        self._kept += size
        try:
            yield
        finally:
            self._kept -= size

    async def _bytes(self, request: Request, limit: int) -> bytearray:
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise BodyTooLarge(limit)
        body = bytearray()
        try:
            await self._fill(body, request, limit)
        except TimeoutError:
            seconds = f"{BODY_SECONDS:.0f} seconds"
            raise BodyTooSlow(f"the request body did not come: {len(body)} bytes in over {seconds}") from None
        finally:
            self._held -= len(body)
        request.state.body_bytes = len(body)
        return body

    async def _fill(self, body: bytearray, request: Request, limit: int) -> None:
        async with asyncio.timeout(BODY_SECONDS) as clock:
            began = asyncio.get_running_loop().time()
            async for piece in request.stream():
                body += piece
                self._held += len(piece)
                clock.reschedule(began + BODY_SECONDS + len(body) / BYTES_PER_SECOND)
                if len(body) > limit:
                    raise BodyTooLarge(limit)
                if self._held > BODIES_AT_ONCE * self._limit:
                    raise QueueFull("too many long request bodies are on their way at once; try again")


def length_of(request: Request) -> int:
    """Bytes of a body that was read."""
    length: int = request.state.body_bytes
    return length


def decode(body: bytes | bytearray, kind: type[B], *, spelling: bool = True) -> B:
    """Decode and validate; RequestError says which field is wrong and what it may be."""
    if _has_too_many_parts(body):
        parts = f"{MAX_PARTS} texts, keys, objects and lists or {MAX_COMMAS} numbers"
        raise RequestError(f"the request body has more than {parts}, or is nested too deeply")
    if not body:
        raise RequestError("the request body is empty; send a JSON object")
    try:
        decoded: B = _decoder(kind).decode(body)
        if spelling:
            _check_spelling(_FIELDS.decode(body), kind)
        return decoded
    except msgspec.ValidationError as error:
        raise _explained(str(error), kind) from None
    except UnicodeDecodeError as error:
        raise RequestError(f"the request body is not valid UTF-8: {error.reason}") from None
    except RecursionError:
        raise RequestError("the request body is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise RequestError(f"the request body is not valid JSON: {error}") from None


def _check_spelling(names: Iterable[str], kind: type[msgspec.Struct]) -> None:
    """Raise RequestError for a field that nobody knows and that looks like one of ours: a slip would change answers.

    Other unknown fields are other servers', and ignored.
    """
    known = kind.__struct_encode_fields__
    for name in names:
        if name not in known and (meant := get_close_matches(name, known, 1, _ALIKE)):
            raise RequestError(f"{name} is no field of this request; did you mean {meant[0]}?", name)


@cache
def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _has_too_many_parts(body: bytes | bytearray) -> bool:
    """Whether the body would take long to make objects of, found without making them."""
    at_most = body.count(b'"') // 2 + body.count(b"[") + body.count(b"{") + body.count(b":")
    if at_most > MAX_PARTS and _has_more(body, _PART, MAX_PARTS):
        return True
    return body.count(b",") > MAX_COMMAS and _has_more(body, _COMMA, MAX_COMMAS)


def _has_more(body: bytes | bytearray, sought: re.Pattern[bytes], most: int) -> bool:
    return sum(1 for _ in islice(sought.finditer(body), most + 1)) > most


def _explained(text: str, kind: type[msgspec.Struct]) -> RequestError:
    """msgspec's words, with the path first and the field's own description of what is allowed."""
    found = _WITH_PATH.fullmatch(text)
    reason, path = (found["reason"], found["path"]) if found else (text, "")
    if missing := _MISSING.match(reason):
        path = f"{path}.{missing['name']}" if path else missing["name"]
        reason = "is missing"
    if not path:
        return RequestError(f"the request body is not valid: {reason}")
    field = re.split(r"[.\[]", path, maxsplit=1)[0]
    allowed = _descriptions(kind).get(field)
    hint = f"; {field} must be {allowed}" if allowed else ""
    return RequestError(f"{path}: {reason[0].lower() + reason[1:]}{hint}", path)


@cache
def _descriptions(kind: type[msgspec.Struct]) -> dict[str, str]:
    """By field, in words, what is allowed."""
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    return {
        field.encode_name: (field.type.extra_json_schema or {}).get("description", "")
        for field in described.fields
        if isinstance(field.type, inspect.Metadata)
    }
