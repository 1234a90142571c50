"""The machine's limits: plausible numbers, and refusals instead of crashes."""

from __future__ import annotations

import json

import pytest
from seeded import CONFIGS

from deepwell import _native
from deepwell.bench import limits
from deepwell.bench.limits import measure_limits, prefill_ops
from deepwell.cli import doctor
from deepwell.cli.main import main
from deepwell.loading.machine import inspect_machine
from deepwell.model.accounting import account
from deepwell.model.config import from_hugging_face
from deepwell.model.params import param_specs


def test_reading_gives_a_rate_per_round() -> None:
    rates = _native.read_bandwidth(16 << 20, 3)
    assert len(rates) == 3
    assert all(1e8 < rate < 1e13 for rate in rates)


@pytest.mark.parametrize("kind", ["int8", "bf16", "fma"])
def test_a_peak_is_above_what_any_processor_does_without_vectors_or_absent(kind: str) -> None:
    found = _native.peak(kind, 2)
    if found is None:
        assert kind == "bf16" or inspect_machine().architecture not in ("x86_64", "aarch64")
        return
    instruction, rates = found
    assert "bits" in instruction
    assert len(rates) == 2
    assert all(1e9 < rate < 1e16 for rate in rates)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: _native.read_bandwidth(1000, 1), "bytes must be at least 1048576, not 1000"),
        (lambda: _native.read_bandwidth(1 << 20, 0), "rounds must be within 1..10000, not 0"),
        (lambda: _native.peak("fma", 0), "rounds must be within 1..10000, not 0"),
        (lambda: _native.peak("fp4", 1), "peak 'fp4' is unknown; there are: int8, bf16, fma"),
    ],
)
def test_wrong_calls_are_refused(call: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()  # type: ignore[operator]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_READ_BYTES", 1 << 24)


def test_doctor_measures_limits_only_when_asked(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.examine({}).limits is None
    assert main(["doctor", "--limits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["limits"]
    assert found["read"]["best"] >= found["read"]["median"] > 1e8
    assert main(["doctor", "--limits"]) == 0
    assert "\nmemory reads " in capsys.readouterr().out


def test_all_figures_use_the_threads_asked_for(small: None) -> None:
    before = _native.threads()
    try:
        assert measure_limits(1).threads == 1
        assert _native.threads() == 1
    finally:
        _native.set_threads(before)


@pytest.mark.parametrize("name", ["llama", "v3", "llama-tied-bias"])
def test_operations_of_a_prompt_token(name: str) -> None:
    config = from_hugging_face(CONFIGS[name]().to_dict())
    kept = [p for p in param_specs(config) if p.kind != "embedding" and "head" not in p.key]
    expected = 2 * sum(p.size * p.active for p in kept)
    assert prefill_ops(config, account(config).active_params) == pytest.approx(expected, abs=4)
