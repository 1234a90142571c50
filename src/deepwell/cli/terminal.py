"""What a model says, made safe for a terminal."""

from __future__ import annotations

import sys
import unicodedata


def show(text: str) -> None:
    """Print a piece of an answer at once: as it is to a file or pipe, without control characters to a terminal."""
    print(visible(text) if sys.stdout.isatty() else text, end="", flush=True)


def visible(text: str) -> str:
    """Text in which nothing but line breaks and tabs steers a terminal: other control characters become U+FFFD."""
    return "".join("�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)
