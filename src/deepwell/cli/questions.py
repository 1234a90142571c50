"""What a person asks: messages typed at a terminal, or all that comes through a pipe."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress

from deepwell.errors import RequestError

MAX_PIPED_BYTES = 64 << 20
FENCE = '"""'
PROMPT, MORE = "> ", "… "
_PATIENCE_SECONDS = 2.0
"""How long a pipe may be silent before somebody is told what is waited for."""
_PASTE_SECONDS = 0.02
"""Lines that come within this time of each other were not typed."""


def messages() -> Iterator[str]:
    """What the user types, message by message, until the input ends. Ctrl-C forgets the line at hand; pressed again,
    before anything is typed, it raises KeyboardInterrupt."""
    _edit_lines()
    pressed = False
    while True:
        try:
            text = _message()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if pressed:
                raise
            pressed = True
            print("(Ctrl-C once more, or Ctrl-D, leaves)")
            continue
        pressed = False
        if text.strip():
            yield text


def is_piped() -> bool:
    """Whether standard input was given for this command to read: a pipe, or a file from its beginning.

    Not so a terminal or /dev/null, a socket, as a remote shell has, that nobody may ever close, nor a file of which a
    loop of the shell has read a line and will want the next.
    """
    try:
        number = sys.stdin.fileno()
        kind = os.fstat(number).st_mode
        return stat.S_ISFIFO(kind) or (stat.S_ISREG(kind) and os.lseek(number, 0, os.SEEK_CUR) == 0)
    except (OSError, ValueError):  # standard input is none of the system's
        return False


def piped() -> str:
    """All of standard input as text. Raises RequestError if it is not UTF-8, or too long for any model."""
    if not sys.stdin.isatty() and not _more_has_come(_PATIENCE_SECONDS):
        print("deepwell: waiting for standard input to end; < /dev/null gives none", file=sys.stderr, flush=True)
    content = sys.stdin.buffer.read(MAX_PIPED_BYTES + 1)
    if len(content) > MAX_PIPED_BYTES:
        raise RequestError(f"standard input has more than the {MAX_PIPED_BYTES >> 20} MiB allowed")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8: byte {error.start} is {content[error.start]:#04x}") from None


def _message() -> str:
    """One message: a line, a paste, lines joined by a backslash at their end, or lines between fences.

    Raises EOFError.
    """
    text = _typed(PROMPT)
    first, _, rest = text.partition("\n")
    if rest:
        inner, fence, end = rest.rpartition(FENCE)
        return inner.removesuffix("\n") if first.strip() == FENCE and fence and not end.strip() else text
    lines: list[str] = []
    if text.strip() == FENCE:
        while (text := _typed(MORE)).strip() != FENCE:
            lines.append(text)
        return "\n".join(lines)
    while text.endswith("\\"):
        lines.append(text[:-1])
        text = _typed(MORE)
    return "\n".join([*lines, text])


def _typed(prompt: str) -> str:
    """A line, or the lines of a paste: readline gives them as one where the terminal marks them, else they come at
    once."""
    lines = [input(prompt)]
    while _more_has_come(_PASTE_SECONDS):
        lines.append(input())
    return "\n".join(lines)


def _more_has_come(seconds: float) -> bool:
    try:
        return bool(select.select([sys.stdin.fileno()], [], [], seconds)[0])
    except (OSError, ValueError):  # standard input is none of the system's
        return False


def _edit_lines() -> None:
    """Arrow keys, history and whole pastes at the prompt, where Python has readline."""
    with suppress(ImportError):
        import readline

        if "GNU readline" in (readline.__doc__ or ""):
            readline.parse_and_bind("set enable-bracketed-paste on")
