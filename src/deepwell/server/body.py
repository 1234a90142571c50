"""Request bodies in: bounded, and every flaw named."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect
from starlette.requests import Request

from deepwell.errors import RequestError
from deepwell.server.errors import BodyTooLarge

B = TypeVar("B", bound=msgspec.Struct)

_WITH_PATH = re.compile(r"(?P<reason>.*) - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>\w+)`")


async def read_body(request: Request, kind: type[B], limit: int) -> B:
    """The body as a `kind`.

    Raises BodyTooLarge above `limit` bytes (reading no further), RequestError for anything that is not JSON of the
    right shape.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(f"Content-Type must be application/json, not {media_type or 'left out'!r}", "Content-Type")
    return decode(await _bounded(request, limit), kind)


def decode(body: bytes, kind: type[B]) -> B:
    """Decode and validate; RequestError says which field is wrong and what it may be."""
    try:
        decoded: B = _decoder(kind).decode(body)
        return decoded
    except msgspec.ValidationError as error:
        raise _explained(str(error), kind) from None
    except UnicodeDecodeError as error:
        raise RequestError(f"the request body is not valid UTF-8: {error.reason}") from None
    except RecursionError:
        raise RequestError("the request body is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise RequestError(f"the request body is not valid JSON: {error}") from None


@cache
def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


async def _bounded(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise BodyTooLarge(limit)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise BodyTooLarge(limit)
    return bytes(body)


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
