"""Waits are told of: nothing of short ones, lines without a terminal, and on one a bar that leaves no trace."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from cli_calls import Terminal

from deepwell.cli import waiting
from deepwell.cli.waiting import Wait, counted, percent, sized


def test_a_short_wait_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    with Wait("reading") as wait:
        wait(1, 2)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_there_are_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SILENT_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "LINE_SECONDS", 0.2)
    with Wait("reading the prompt\x1b[2J") as wait:
        time.sleep(0.1)
        wait(3072, 10240)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "deepwell: reading the prompt�[2J"
    assert lines[-1] == "deepwell: reading the prompt�[2J 3,072/10,240"


def test_on_a_terminal_there_is_a_bar_and_then_nothing() -> None:
    code = (
        "import time; from deepwell.cli import waiting\n"
        "waiting.SILENT_SECONDS = 0.01\n"
        "with waiting.Wait('reading the prompt') as wait:\n"
        "    wait(3072, 10240); time.sleep(0.8)\n"
        "print('done')"
    )
    with Terminal(term="xterm", command=(sys.executable, "-c", code)) as terminal:
        terminal.wait_for("reading the prompt 3,072/10,240")
        terminal.wait_for("\x1b[?25h")  # the cursor is back
        terminal.wait_for("done")
        assert terminal.process.wait(20) == 0


def test_amounts() -> None:
    assert (counted(1000, 2000), sized(10**8, 3 * 10**9), percent(1, 3)) == ("1,000/2,000", "0.10/3.00 GB", "33%")


def test_a_quick_wait_costs_no_import() -> None:
    code = "import sys; from deepwell.cli.waiting import Wait\nwith Wait('x'): pass\nprint('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"
