"""A multipart/form-data body taken apart (RFC 7578): fields, and one file, as the bytes they are."""

from __future__ import annotations

import re
from email.message import Message

import msgspec

from deepwell.errors import RequestError

MAX_PARTS = 16
HEAD_BYTES = 8192
"""Of one part's headers."""


class Part(msgspec.Struct, frozen=True):
    """A field, or a file if it has a name of one."""

    name: str
    filename: str | None
    data: bytes


def parts_of(content_type: str, body: bytes) -> dict[str, Part]:
    """The parts by name. Raises RequestError for a body that is no form."""
    kind = Message()
    kind["Content-Type"] = content_type.replace("\r", " ").replace("\n", " ")
    boundary = kind.get_param("boundary")
    if kind.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise RequestError("Content-Type must be multipart/form-data with a boundary", "Content-Type")
    if not re.fullmatch(r"[\x20-\x7e]{1,70}", boundary):
        raise RequestError("the boundary of a form has 1 to 70 plain characters", "Content-Type")
    mark = b"\r\n--" + boundary.encode("ascii")
    pieces = (b"\r\n" + body).split(mark, MAX_PARTS + 2)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise RequestError(f"the form is cut off, or has more than {MAX_PARTS} parts")
    found = [_part(piece) for piece in pieces[1:-1]]
    if len({part.name for part in found}) < len(found):
        raise RequestError("the form has a field twice")
    return {part.name: part for part in found}


def _part(piece: bytes) -> Part:
    head, gap, data = piece.partition(b"\r\n\r\n")
    if not gap or len(head) > HEAD_BYTES:
        raise RequestError(f"a part of the form has no end of its headers, or more than {HEAD_BYTES} bytes of them")
    fields = Message()
    for line in head.decode("utf-8", "replace").split("\r\n"):
        header, _, value = line.partition(":")
        if header.strip().lower() == "content-disposition":
            fields["Content-Disposition"] = value.strip()
    name = fields.get_param("name", header="Content-Disposition")
    if fields.get_content_disposition() != "form-data" or not isinstance(name, str):
        raise RequestError("a part of the form has no name")
    return Part(name, fields.get_filename(), data)
