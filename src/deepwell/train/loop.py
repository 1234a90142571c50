"""Pretraining: rows of tokens to weights, step by step, stoppable at any step and resumed bit for bit."""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec
import torch
from torch import Tensor

from deepwell.errors import CheckpointError, DeepwellError
from deepwell.files import write_whole
from deepwell.json_lines import append_line, read_lines
from deepwell.train.checkpoint import RunState, load_run, load_state, save_run
from deepwell.train.config import TrainConfig
from deepwell.train.dataset import RowStream
from deepwell.train.schedule import bias_speed, learning_rate, mtp_weight
from deepwell.train.trainee import IGNORED, Trainee, mtp_targets

LOG = "metrics.jsonl"
COLLAPSED = 4.0
"""Alarm: the busiest expert of a layer has this many times more than its share."""
STARVED = 0.05
"""An expert with less than this share of its share counts as dead."""


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the log: means over the steps since the last line. Losses are in nats per token."""

    step: int
    tokens: int
    loss: float
    mtp_loss: float | None
    balance: float
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    cpu_seconds: float
    max_violation: float
    dead_experts: int
    held_out_bpb: float | None = None
    alarm: str = ""


class StepRecord(msgspec.Struct, frozen=True):
    """What the log needs of one step: losses in nats per token, and tokens per expert by layer."""

    loss: float
    mtp_loss: float | None
    balance: float
    grad_norm: float
    counts: dict[int, list[int]]


class Outcome(msgspec.Struct, frozen=True):
    """How far a run got: whether it is finished, its state, and the number of the signal that ended it, if one did."""

    finished: bool
    state: RunState
    signal: int | None = None


class Pretraining:
    """A run in the folder `config.out`, resumed from its checkpoint if there is one."""

    def __init__(
        self,
        config: TrainConfig,
        trainee: Trainee,
        rows: RowStream,
        special: tuple[int, int],
        inputs: dict[str, str],
        measure: Callable[[Trainee], float] | None = None,
    ) -> None:
        """`special` are the ids of padding and BOS, never predicted. `measure` gives held-out bits per byte."""
        self.config, self.trainee, self.rows, self.special = config, trainee, rows, special
        self.inputs, self.measure = inputs, measure
        self.optimizer = make_optimizer(trainee, config)
        self._step, self._cpu, self._wall = 0, 0.0, 0.0
        self._stop = False
        self._signal: int | None = None
        self._since: list[StepRecord] = []
        self._logged_at = 0.0, 0
        self._resume()

    def run(self, on_step: Callable[[int, Metrics | None], None] = lambda step, metrics: None) -> Outcome:
        """Train to the end, to the CPU limit, or to a SIGTERM or SIGINT; save in each case."""
        began, cpu, wall, saved = time.process_time(), self._cpu, self._wall, time.monotonic()
        started = time.monotonic()
        self._logged_at = started, self._step
        with self._signals(), warnings.catch_warnings():
            # autocast hands norms bfloat16 inputs and float32 weights on purpose
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            while self._step < self.config.steps and not self._stop:
                self._since.append(self._train_step(self._step))
                self._step += 1
                self._cpu, self._wall = cpu + time.process_time() - began, wall + time.monotonic() - started
                on_step(self._step, self._log() if self._due(self.config.log_steps) else None)
                if time.monotonic() - saved > 60 * self.config.save_minutes:
                    self.save()
                    saved = time.monotonic()
                self._stop |= 0 < 60 * self.config.minutes <= self._cpu
        self.save()
        return Outcome(self._step >= self.config.steps, self._state(), self._signal)

    def stop(self) -> None:
        """Ask the loop to save and leave after the step it is at."""
        self._stop = True

    def save(self) -> None:
        save_run(self.config.out, self.trainee.weights, self.optimizer, self._state())

    def _state(self) -> RunState:
        unlogged = msgspec.to_builtins(self._since, str_keys=True)
        return RunState(self._step, self._cpu, self._wall, self.config.identity(), self.inputs, unlogged)

    def _resume(self) -> None:
        state = load_state(self.config.out)
        if state is None:
            (self.config.out / LOG).unlink(missing_ok=True)
            return
        check_same(self.config, state, self.inputs)
        load_run(self.config.out, self.trainee.weights, self.optimizer)
        self._step, self._cpu, self._wall = state.step, state.cpu_seconds, state.wall_seconds
        self._since = msgspec.convert(state.unlogged, list[StepRecord], strict=False)
        _forget_after(self.config.out / LOG, state.step)

    def _due(self, every: int) -> bool:
        return every > 0 and (self._step % every == 0 or self._step == self.config.steps)

    def _train_step(self, step: int) -> StepRecord:
        config = self.config
        rows = torch.from_numpy(self.rows.rows(step * config.batch_rows, config.batch_rows))
        targets = self._targets(rows)
        weight = mtp_weight(config, step)
        loss, mtp_loss, balance = 0.0, 0.0, 0.0
        counts: dict[int, Tensor] = {}
        valid, valid_mtp = int((targets != IGNORED).sum()), int((mtp_targets(targets) != IGNORED).sum())
        for part, wanted in zip(rows.split(config.micro_rows), targets.split(config.micro_rows), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
                losses = self.trainee.losses(part, wanted, mtp=weight > 0)
            share = part.shape[0] / config.batch_rows
            total = losses.next_token / valid + config.balance_loss * share * losses.balance
            loss += float(losses.next_token.detach()) / valid
            balance += float(losses.balance.detach()) * share
            if losses.mtp is not None:
                total = total + weight * losses.mtp / valid_mtp
                mtp_loss += float(losses.mtp.detach()) / valid_mtp
            total.backward()
            for load in losses.loads:
                counts[load.layer] = counts.get(load.layer, torch.zeros_like(load.count_E)) + load.count_E
        norm = self._update(step)
        self.trainee.move_biases(counts, bias_speed(config, step))
        listed = {layer: count_E.tolist() for layer, count_E in counts.items()}
        return StepRecord(loss, mtp_loss if weight > 0 else None, balance, norm, listed)

    def _targets(self, rows: Tensor) -> Tensor:
        targets = rows[:, 1:].clone()
        for never in self.special:
            targets[targets == never] = IGNORED
        return targets

    def _update(self, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.trainee.trained.values()), self.config.clip))
        if not math.isfinite(norm):
            raise DeepwellError(
                f"the gradient of step {step + 1} is not finite; the last checkpoint stands. Try a lower learning rate "
                "or precision float32 in a new folder"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _log(self) -> Metrics:
        since, self._since = self._since, []
        violation, dead = _balance_of([record.counts for record in since])
        mtp = [record.mtp_loss for record in since if record.mtp_loss is not None]
        (before, step), now = self._logged_at, time.monotonic()
        measured = self.measure(self.trainee) if self.measure and self._due(self.config.eval_steps) else None
        self._logged_at = time.monotonic(), self._step
        metrics = Metrics(
            step=self._step,
            tokens=self._step * self.config.batch_tokens,
            loss=_mean([record.loss for record in since]),
            mtp_loss=_mean(mtp) if mtp else None,
            balance=_mean([record.balance for record in since]),
            grad_norm=_mean([record.grad_norm for record in since]),
            learning_rate=learning_rate(self.config, self._step - 1),
            tokens_per_second=(self._step - step) * self.config.batch_tokens / max(1e-9, now - before),
            cpu_seconds=self._cpu,
            max_violation=violation,
            dead_experts=dead,
            held_out_bpb=measured,
            alarm=_alarm(violation, dead),
        )
        append_line(self.config.out / LOG, metrics)
        return metrics

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(number: int, frame: FrameType | None) -> None:
            self._signal = number
            self.stop()

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def check_same(config: TrainConfig, state: RunState, inputs: dict[str, str] | None = None) -> None:
    """CheckpointError unless the run of `state` can go on under this config, and with these inputs if they are made."""
    recipe, odd = config.identity(), []
    for key in dict.fromkeys([*recipe, *state.config]):
        if recipe.get(key) != state.config.get(key):
            odd.append(f"{key} was {state.config.get(key)}, is {recipe.get(key)}")
    for key, made in (inputs or {}).items():
        if made != state.inputs.get(key):
            odd.append(f"the {key} it began with would be made otherwise")
    if odd:
        raise CheckpointError(f"{config.out}: cannot resume: {'; '.join(odd)}. Choose another folder or the old values")


def make_optimizer(trainee: Trainee, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW(0.9, 0.95) with decay on matrices only, as every DeepSeek report has it."""
    matrices = [w for key, w in trainee.trained.items() if w.ndim > 1 and key != "embed"]
    others = [w for key, w in trainee.trained.items() if w.ndim == 1 or key == "embed"]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)


def _balance_of(counts: list[dict[int, list[int]]]) -> tuple[float, int]:
    """Over some steps: how far the busiest expert of any layer is above its share, and how many are starved."""
    worst, dead = 0.0, 0
    for layer in counts[-1] if counts else ():
        total = [sum(of) for of in zip(*(step[layer] for step in counts if layer in step), strict=True)]
        shares = [count * len(total) / sum(total) for count in total]
        worst = max(worst, max(shares) - 1)
        dead += sum(share < STARVED for share in shares)
    return worst, dead


def _alarm(violation: float, dead: int) -> str:
    if dead:
        return f"{dead} experts get next to no tokens"
    return f"an expert gets {violation + 1:.1f} times its share" if violation > COLLAPSED else ""


def _forget_after(path: Path, step: int) -> None:
    """Drop log lines of steps that the checkpoint has not seen: they will be written again."""
    lines = [line for line in read_lines(path, Metrics) if line.step <= step]
    write_whole(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
