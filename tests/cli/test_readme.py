"""The README's first screen says what the commands say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deepwell.cli.commands import GROUPS
from deepwell.cli.main import main
from deepwell.model.published import find_published

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ROWS = [
    re.split(r" *\| *", line.strip("| ")) for line in README.splitlines() if re.match(r"\| [\w.-]+ \| [\d.]+B", line)
]


@pytest.mark.parametrize("row", [row for row in ROWS if find_published(row[0])], ids=lambda row: row[0])
def test_what_a_machine_needs_is_what_models_says(row: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name, parameters, *sizes = row
    assert main(["models", name, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    need = {one["precision"]: one["need_bytes"] for one in told["precisions"]}
    found = [need["int4"], need["int8"], need["bfloat16"], told["kv_bytes_per_token"] * 8192]
    assert [float(size.replace(",", "")) for size in sizes] == pytest.approx(
        [f / 1e9 for f in found], abs=0.051, rel=2e-3
    )
    total, active = (f"{told[key] / 1e9:.1f}B" for key in ("total_params", "active_params"))
    assert parameters == (total if told["active_params"] > told["total_params"] / 2 else f"{total} ({active})")


def test_the_table_is_found_and_commands_exist() -> None:
    assert len(ROWS) == 7
    used = set(re.findall(r"(?:^\$ |`)deepwell ([a-z]+)", README, re.M))
    assert {"serve", "chat", "models"} <= used <= set(GROUPS)


def test_the_command_can_be_had() -> None:
    block = re.search(r"```sh\n(.*?)```", README, re.S)
    assert block
    assert ". .venv/bin/activate" in block[1]
    assert "pipx install ." in block[1]
