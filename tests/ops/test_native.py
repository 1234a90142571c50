"""The native backend's promises beside arithmetic: bad input, threads, signals, forks, forced instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import msgspec
import numpy as np
import pytest
from op_backends import NATIVE_BACKENDS, int32, moe, normal, packed, packed_batch
from test_invariance import ALL_AT_ONCE, CACHE_WIDTHS, MLA, small_model, step, weights

from deepwell import _native
from deepwell.ops import native
from deepwell.ops.base import Batch, GqaShape, Rotation, Routing

ATTENTION = GqaShape(2, 1, 4, 0.5)


def tiny_plan() -> native.Plan:
    """10 tokens of vocabulary, one attention layer of width 8, logits of 16 columns."""
    recorder = native.Recorder()
    q, k, v = recorder.split(recorder.embed(packed(normal(0, 10, 16), "float32")), (8, 4, 4))
    out = recorder.gqa(q, k, v, 0, ATTENTION)
    return recorder.finish(recorder.linear(recorder.select(out), packed(normal(1, 16, 8), "float32")))


GOOD = packed_batch([(0, 3), (60, 6)])
assert GOOD.block_table_SP.shape == (2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_T": [0, 1, 2, 3, 4, 5, 6, 7, 10]}, r"token 10 is outside 0\.\.9 \(row 8\)"),
        ({"tokens_T": [-1, 1, 2, 3, 4, 5, 6, 7, 8]}, "token -1 is outside"),
        ({"tokens_T": [1, 2]}, "same length"),
        ({"positions_T": [0, 1, 3, 60, 61, 62, 63, 64, 65]}, "ascend by one"),
        ({"positions_T": [-1, 0, 1, 60, 61, 62, 63, 64, 65]}, "position -1 is negative"),
        ({"positions_T": [0, 1, 2, 125, 126, 127, 128, 129, 130]}, "needs more pages than the block table's 2"),
        ({"positions_T": [0, 1, 2, 2**31 - 6, 2**31 - 5, 2**31 - 4, 2**31 - 3, 2**31 - 2, 2**31 - 1]}, "needs more"),
        ({"sequence_T": [0, 0, 0, 2, 2, 2, 2, 2, 2]}, r"sequence 2 is outside 0\.\.1"),
        ({"sequence_T": [0, 0, 0, -1, -1, -1, -1, -1, -1]}, "sequence -1"),
        (
            {"sequence_T": [0, 0, 1, 1, 1, 1, 1, 1, 0], "positions_T": [0, 1, 60, 61, 62, 63, 64, 65, 2]},
            "sequence 0 are not consecutive",
        ),
        ({"block_table_SP": [[0, 0], [1, 3]]}, r"block 3 of sequence 1 is outside 0\.\.2"),
        ({"block_table_SP": [[0, 0], [-1, 2]]}, "block -1"),
        ({"block_table_SP": [[1, 0], [1, 2]]}, "two sequences write block 1"),
        ({"selected_L": [9]}, r"selected row 9 is outside 0\.\.8"),
        ({"selected_L": [-1]}, "selected row -1"),
        ({"tokens_T": [], "positions_T": [], "sequence_T": [], "selected_L": []}, "at least one token"),
    ],
    ids=str,
)
def test_bad_batches_are_refused(change: dict[str, Any], message: str) -> None:
    batch = msgspec.structs.replace(GOOD, **{name: int32(value) for name, value in change.items()})
    with pytest.raises(ValueError, match=message):
        tiny_plan().run(batch, native.Cache([8], 3))


def valid(batch: Batch, blocks: int) -> bool:
    """The contract of `Batch`, said again for `tiny_plan`."""
    pages = batch.block_table_SP.shape[1]
    runs: dict[int, list[int]] = {}
    previous = None
    for s, p in zip(batch.sequence_T.tolist(), batch.positions_T.tolist(), strict=True):
        if s != previous and s in runs:
            return False
        runs.setdefault(s, []).append(p)
        previous = s
    written: list[int] = []
    for s, positions in runs.items():
        first, last = positions[0], positions[-1]
        if not 0 <= s < len(batch.block_table_SP) or positions != [first + i for i in range(len(positions))]:
            return False
        if first < 0 or last // 64 >= pages:
            return False
        held = batch.block_table_SP[s, : last // 64 + 1].tolist()
        if any(not 0 <= block < blocks for block in held):
            return False
        written += held[first // 64 :]
    rows = len(batch.tokens_T)
    in_range = all(0 <= t < 10 for t in batch.tokens_T) and all(0 <= i < rows for i in batch.selected_L)
    return in_range and len(written) == len(set(written))


def test_a_batch_runs_exactly_when_it_keeps_the_contract() -> None:
    """Five hundred batches with an entry or two changed at random."""
    rng = np.random.default_rng(0)
    plan, outcomes = tiny_plan(), []
    for _ in range(500):
        arrays = {name: getattr(GOOD, name).copy() for name in GOOD.__struct_fields__ if name != "more_tables"}
        for _ in range(rng.integers(1, 3)):
            array = arrays[rng.choice(list(arrays))].reshape(-1)
            array[rng.integers(len(array))] = rng.choice([-1, 0, 1, 2, 3, 9, 10, 63, 64, 127, 128, 2**31 - 1])
        batch = Batch(**arrays)
        outcomes.append(valid(batch, 3))
        if outcomes[-1]:
            assert plan.run(batch, native.Cache([8], 3)).shape == (9, 16)
        else:
            with pytest.raises(ValueError, match=r"."):
                plan.run(batch, native.Cache([8], 3))
    assert 50 < sum(outcomes) < 450


def test_a_good_batch_runs_and_entries_it_does_not_need_may_be_anything() -> None:
    plan, cache = tiny_plan(), native.Cache([8], 3)
    table = GOOD.block_table_SP.copy()
    table[0, 1] = 1_000_000
    first = plan.run(GOOD, cache)
    again = plan.run(msgspec.structs.replace(GOOD, block_table_SP=table), cache)
    assert np.array_equal(first[:3], again[:3])
    assert plan.run(msgspec.structs.replace(GOOD, selected_L=int32([])), cache).shape == (0, 16)


@pytest.mark.parametrize("widths", [[], [9]])
def test_a_cache_of_another_shape_is_refused(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="cache"):
        tiny_plan().run(GOOD, native.Cache(widths, 3))


@pytest.mark.parametrize("tokens", [np.zeros((9, 1), np.int32), np.zeros(9, np.int64), np.zeros(18, np.int32)[::2]])
def test_arrays_of_another_type_are_refused_not_converted(tokens: Any) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        tiny_plan().run(msgspec.structs.replace(GOOD, tokens_T=tokens), native.Cache([8], 3))


def record(graph: Any) -> None:
    recorder = native.Recorder()
    graph(recorder, recorder.embed(packed(normal(0, 10, 16), "float32")))


ROTATION = Rotation((1.0,), "half")


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            lambda o, x: o.linear(x, packed(normal(0, 4, 15), "int8")),
            "weight of linear is 1 x 4 x 15, expected 1 x any",
        ),
        (lambda o, x: o.linear(x, packed(normal(0, 4, 16), "int8"), native.vector(normal(0, 5))), "bias of linear"),
        (lambda o, x: o.rms_norm(x, native.vector(normal(0, 15)), 1e-6), "rms_norm has 15 values, expected 16"),
        (lambda o, x: o.rms_norm(x, native.vector(normal(0, 16)), 1e-6, 3), "cannot cut 16 columns into 3 heads"),
        (lambda o, x: o.split(x, (8, 9)), "do not fit in 16 columns"),
        (lambda o, x: o.split(x, (8, 7)), "add up to 15, not 16"),
        (lambda o, x: o.split(x, (16, -1)), "do not fit"),
        (lambda o, x: o.concat([]), "at least one piece"),
        (lambda o, x: o.add(x, o.split(x, (8, 8))[0]), "has 8 columns, expected 16"),
        (lambda o, x: o.add(x, o.select(x)), "selected rows"),
        (lambda o, x: o.rope(o.select(x), 1, ROTATION), "before select"),
        (lambda o, x: o.rope(x, 3, ROTATION), "cannot rotate"),
        (lambda o, x: o.rope(x, 16, ROTATION), "cannot rotate"),
        (lambda o, x: o.select(o.select(x)), "already"),
        (lambda o, x: o.gated(x, packed(normal(0, 7, 16), "float32")), "even number"),
        (lambda o, x: o.linear(x, native.gate_up_matrix(1, 64, 16, "int4")), "pairs"),
        (lambda o, x: o.finish(x), "call select first"),
        (lambda o, x: o.finish(o.split(o.select(x), (8, 8))[0]), "whole result"),
        (lambda o, x: o.gqa(x, x, x, 0, GqaShape(4, 3, 4, 1.0)), "cannot share 3 key heads"),
        (lambda o, x: o.gqa(x, x, x, 0, GqaShape(4, 2, 4, 1.0)), "keys of gqa has 16 columns, expected 8"),
        (lambda o, x: [o.gqa(x, x, x, 0, GqaShape(4, 4, 4, 1.0)) for _ in range(2)], "layer 0 is used twice"),
        (lambda o, x: o.gqa(x, x, x, -1, GqaShape(4, 4, 4, 1.0)), "negative"),
        (lambda o, x: native.Recorder().add(x, x), "another plan"),
    ],
)
def test_wrong_plans_are_refused_while_recording(graph: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(graph)


@pytest.mark.parametrize(
    ("routing", "bias", "message"),
    [
        (Routing(8, 9, "softmax", "greedy"), None, "1 <= top_k <= experts"),
        (Routing(8, 2, "softmax", "greedy"), 8, "only noaux_tc"),
        (Routing(8, 2, "sigmoid", "noaux_tc"), 7, "bias has 7 values"),
        (Routing(8, 2, "sigmoid", "noaux_tc", n_group=3), None, "into 3 equal groups"),
        (Routing(8, 5, "sigmoid", "noaux_tc", n_group=4, topk_group=2), None, "choose 5 experts from the 4"),
        (Routing(7, 2, "softmax", "greedy"), None, "the router has 8 rows, the routing 7"),
    ],
)
def test_wrong_routings_are_refused(routing: Routing, bias: int | None, message: str) -> None:
    router = packed(normal(0, 8, 16), "float32")
    gate_up, down = (packed(normal(0, *s), "int4") for s in ((8, 6, 16), (8, 16, 3)))
    vector = native.vector(normal(0, bias)) if bias else None
    with pytest.raises(ValueError, match=message):
        record(lambda o, x: moe(o, x, router, vector, gate_up, down, routing))


def test_a_finished_plan_takes_no_more_operations() -> None:
    recorder = native.Recorder()
    out = recorder.select(recorder.embed(packed(normal(0, 10, 16), "float32")))
    recorder.finish(out)
    with pytest.raises(ValueError, match="finished"):
        recorder.add(out, out)


def test_exp_is_within_two_units_in_the_last_place() -> None:
    x = np.linspace(-87.2, 88.2, 200_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    before = native.isa()
    for backend in NATIVE_BACKENDS:
        native.set_isa(backend.isa)
        got = _native.exp(x)[0]
        assert (np.abs(got - exact) / exact).max() < 2e-7
        assert _native.exp(np.array([-np.inf, -200, 0], np.float32)).tolist() == [[0, 0, 1]]
    native.set_isa(before)


class Model:
    """The small model of the invariance tests with its cache, and the answer it gives to all sequences at once."""

    def __init__(self) -> None:
        recorder = native.Recorder()
        handles = {name: NATIVE_BACKENDS[0].handle(name, w, MLA) for name, w in weights().items()}
        self.plan = recorder.finish(recorder.select(small_model(recorder, handles)))
        self.batch: Batch = step(ALL_AT_ONCE[0])

    def run(self) -> bytes:
        return self.plan.run(self.batch, native.Cache(CACHE_WIDTHS, 15)).tobytes()


def test_steps_from_several_threads_take_turns() -> None:
    models = [Model(), Model()]
    want = models[0].run()
    found: list[bytes] = []
    workers = [threading.Thread(target=lambda m=m: found.extend(m.run() for _ in range(5))) for m in models * 2]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 20
    assert set(found) == {want}


def test_python_goes_on_while_a_step_runs() -> None:
    matrix = packed(normal(0, 2048, 2048), "float32")
    recorder = native.Recorder()
    x = recorder.embed(matrix)
    for _ in range(8):
        x = recorder.linear(x, matrix)
    plan, cache = recorder.finish(recorder.select(x)), native.Cache([], 4)
    before = native.threads()
    native.set_threads(1)
    worker = threading.Thread(target=plan.run, args=(packed_batch([(0, 256)]), cache))
    worker.start()
    ticks = 0
    while worker.is_alive():
        time.sleep(0.0005)
        ticks += 1
    native.set_threads(before)
    assert ticks > 3


def test_an_idle_pool_uses_no_processor_time() -> None:
    native.set_threads(2)
    Model().run()
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


def test_a_forked_child_can_run_steps() -> None:
    native.set_threads(2)
    model = Model()
    want = model.run()
    child = os.fork()
    if child == 0:
        os._exit(0 if model.run() == want else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert model.run() == want


@pytest.mark.parametrize("n", [0, -1, 100_000])
def test_impossible_thread_counts_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=r"within 1\.\.1024"):
        native.set_threads(n)


def test_unknown_instruction_sets_are_refused_and_known_ones_named() -> None:
    with pytest.raises(ValueError, match=r"'mmx' is not available; this machine has: .*scalar"):
        native.set_isa("mmx")


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, timeout=120
    )


def test_the_environment_forces_an_instruction_set() -> None:
    code = "from deepwell.ops import native; print(native.isa())"
    assert run_python(code, DEEPWELL_ISA="scalar").stdout == "scalar\n"
    assert "'sse9' is not available" in run_python(code, DEEPWELL_ISA="sse9").stderr


def test_interrupts_reach_python_and_the_process_ends_cleanly() -> None:
    code = """
import os, signal
import numpy as np
from deepwell.ops import native
from deepwell.ops.base import Batch
matrix = native.Matrix(1, 256, 256, "float32")
matrix.fill(0, 0, np.ones((256, 256), np.float32))
recorder = native.Recorder()
plan = recorder.finish(recorder.linear(recorder.select(recorder.embed(matrix)), matrix))
rows = np.arange(64, dtype=np.int32)
step = Batch(rows, rows, 0 * rows, np.zeros((1, 1), np.int32), rows)
native.set_threads(2)
plan.run(step, native.Cache([], 1))
try:
    os.kill(os.getpid(), signal.SIGINT)
    while True: plan.run(step, native.Cache([], 1))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    result = run_python(code)
    assert (result.returncode, result.stdout) == (0, "interrupted\n"), result.stderr


def test_inputs_and_further_results() -> None:
    """Rows given from outside, and results of all and of selected rows copied out; later work leaves them alone."""
    recorder = native.Recorder()
    given = recorder.input(5)
    embedded = recorder.embed(packed(table := normal(0, 10, 5), "float32"))
    both = recorder.add(given, embedded)
    chosen = recorder.select(both)
    later = recorder.add(recorder.add(both, both), both)
    weight = normal(1, 7, 5)
    plan = recorder.finish(recorder.linear(recorder.select(later), packed(weight, "float32")), both, chosen, given)
    cache = native.Cache([], 4)
    for seed in (2, 3):
        x = normal(seed, 9, 5)
        batch = Batch(
            GOOD.tokens_T, GOOD.positions_T, GOOD.sequence_T, GOOD.block_table_SP, GOOD.selected_L[::2].copy()
        )
        logits, all_rows, selected, back = plan.run_all(batch, cache, [x])
        want = x + table[batch.tokens_T]
        assert np.array_equal(back, x)
        assert np.array_equal(all_rows, want)
        assert np.array_equal(selected, want[batch.selected_L])
        assert np.allclose(logits, 3 * want[batch.selected_L] @ weight.T, atol=1e-4)
    for wrong in ([], [x, x], [x[:-1]], [normal(0, 9, 4)]):
        with pytest.raises(ValueError, match="input"):
            plan.run_all(batch, cache, wrong)
    with pytest.raises(ValueError, match="at least 1 column"):
        native.Recorder().input(0)
