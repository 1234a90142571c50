"""What zsh and fish offer on Tab, asked of the shells themselves."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from deepwell.cli import completion

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "HF_HOME": "/nonexistent",
    "TERM": "dumb",
}

_ZSH = r"""
PROMPT='' RPROMPT=''
autoload -Uz compinit; compinit -u -D
source ./script
compadd() {
    local -a hits
    if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)* ]]; then builtin compadd -O hits "$@"; print -rl -- $hits >> offered; fi
    builtin compadd "$@"
}
offer() { BUFFER="$(<line)"; CURSOR=$#BUFFER; zle complete-word; BUFFER=''; : > done }
zle -N offer
bindkey '^X' offer
: > ready
"""
"""Completion runs in zsh's line editor alone: a widget completes the line and notes all that is offered."""


def offered_by_fish(line: str, folder: Path) -> list[str]:
    """The words, without what is said of them."""
    (folder / "script").write_text(completion.fish(), "utf-8")
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source script; complete -C '{line}'"],
        cwd=folder,
        env=ENVIRONMENT | {"HOME": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return [offer.partition("\t")[0] for offer in done.stdout.splitlines() if offer != "script"]


def offered_by_zsh(line: str, folder: Path) -> list[str]:
    """The words, but for names of files."""
    for name, text in (("script", completion.zsh()), ("setup", _ZSH), ("line", line), ("offered", "")):
        (folder / name).write_text(text, "utf-8")
    own, its = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=its, stdout=its, stderr=its, start_new_session=True, cwd=folder, env=ENVIRONMENT
    )
    os.close(its)
    said = bytearray()
    threading.Thread(target=_listen, args=(own, said), daemon=True).start()
    try:
        os.write(own, b"source ./setup\n")
        _await(folder / "ready", said)
        os.write(own, b"\x18")
        _await(folder / "done", said)
    finally:
        shell.kill()
        shell.wait(timeout=60)
        os.close(own)
    files = {"script", "setup", "line", "offered", "ready", "done"}
    return [word for word in (folder / "offered").read_text("utf-8").split() if word not in files]


def _listen(terminal: int, said: bytearray) -> None:
    with suppress(OSError):  # the shell has ended
        while more := os.read(terminal, 4096):
            said += more


def _await(file: Path, said: bytearray) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, bytes(said)
        time.sleep(0.02)
