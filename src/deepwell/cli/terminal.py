"""What a model says, made safe for a terminal."""

from __future__ import annotations

import os
import sys
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def show(text: str) -> None:
    """Print a piece of an answer at once: as it is to a file or pipe, without control characters to a terminal."""
    print(visible(text) if sys.stdout.isatty() else text, end="", flush=True)


def visible(text: str) -> str:
    """Text in which nothing but line breaks and tabs steers a terminal: other control characters become U+FFFD, and so
    do those that turn the direction of what follows, which could make one name look like another."""
    return "".join("�" if _steers(char) else char for char in text)


def console_of_tables(width: int) -> Console:
    """Standard output for tables: as wide as the terminal, and `width` in a file or pipe, where nothing need be cut."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = width
    return console


def _steers(char: str) -> bool:
    return (unicodedata.category(char) == "Cc" and char not in "\n\t") or unicodedata.bidirectional(char) in _TURNS


_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
