"""Pretraining: rows of tokens to weights, step by step, stoppable at any step and resumed bit for bit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import torch
from torch import Tensor

from deepwell.errors import CheckpointError
from deepwell.train.checkpoint import RunState, load_run, load_state, save_run
from deepwell.train.config import TrainConfig
from deepwell.train.dataset import RowStream
from deepwell.train.schedule import bias_speed, learning_rate, mtp_weight
from deepwell.train.stages import append
from deepwell.train.trainee import IGNORED, Trainee, further_targets

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


class Outcome(msgspec.Struct, frozen=True):
    """How far a run got: whether it is finished, and its state."""

    finished: bool
    state: RunState


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
        self._since: list[dict[str, Any]] = []
        self._resume()

    def run(self, on_step: Callable[[int, Metrics | None], None] = lambda step, metrics: None) -> Outcome:
        """Train to the end, to the CPU limit, or to a SIGTERM or SIGINT; save in each case."""
        began, cpu, wall, saved = time.process_time(), self._cpu, self._wall, time.monotonic()
        started = time.monotonic()
        with self._signals():
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
        return Outcome(self._step >= self.config.steps, self._state())

    def stop(self) -> None:
        """Ask the loop to save and leave after the step it is at."""
        self._stop = True

    def save(self) -> None:
        save_run(self.config.out, self.trainee.weights, self.optimizer, self._state())

    def _state(self) -> RunState:
        return RunState(self._step, self._cpu, self._wall, self.config.identity(), self.inputs)

    def _resume(self) -> None:
        state = load_state(self.config.out)
        if state is None:
            (self.config.out / LOG).unlink(missing_ok=True)
            return
        ours = {**self.config.identity(), **self.inputs}
        theirs = {**state.config, **state.inputs}
        if odd := [key for key in ours if ours[key] != theirs.get(key)]:
            told = "; ".join(f"{key} was {theirs.get(key)}, is {ours[key]}" for key in odd)
            raise CheckpointError(f"{self.config.out}: cannot resume, {told}. Choose another folder or the old values")
        load_run(self.config.out, self.trainee.weights, self.optimizer)
        self._step, self._cpu, self._wall = state.step, state.cpu_seconds, state.wall_seconds
        _forget_after(self.config.out / LOG, state.step)

    def _due(self, every: int) -> bool:
        return every > 0 and (self._step % every == 0 or self._step == self.config.steps)

    def _train_step(self, step: int) -> dict[str, Any]:
        config = self.config
        rows = torch.from_numpy(self.rows.rows(step * config.batch_rows, config.batch_rows))
        targets = self._targets(rows)
        weight = mtp_weight(config, step)
        sums = {"loss": 0.0, "mtp_loss": 0.0, "balance": 0.0}
        counts: dict[int, Tensor] = {}
        valid, further = int((targets != IGNORED).sum()), int((further_targets(targets) != IGNORED).sum())
        for part, wanted in zip(rows.split(config.micro_rows), targets.split(config.micro_rows), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
                losses = self.trainee.losses(part, wanted, mtp=weight > 0)
            share = part.shape[0] / config.batch_rows
            total = losses.next_token / valid + config.balance_loss * share * losses.balance
            sums["loss"] += float(losses.next_token.detach()) / valid
            sums["balance"] += float(losses.balance.detach()) * share
            if losses.further is not None:
                total = total + weight * losses.further / further
                sums["mtp_loss"] += float(losses.further.detach()) / further
            total.backward()
            for load in losses.loads:
                counts[load.layer] = counts.get(load.layer, torch.zeros(())) + load.count_E
        norm = self._update(step)
        self.trainee.move_biases(counts, bias_speed(config, step))
        return {**sums, "mtp": weight > 0, "grad_norm": norm, "counts": counts, "at": time.monotonic()}

    def _targets(self, rows: Tensor) -> Tensor:
        targets = rows[:, 1:].clone()
        for never in self.special:
            targets[targets == never] = IGNORED
        return targets

    def _update(self, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        norm = torch.nn.utils.clip_grad_norm_(list(self.trainee.trained.values()), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _log(self) -> Metrics:
        since, self._since = self._since, []
        violation, dead = _balance_of([entry["counts"] for entry in since])
        first = getattr(self, "_last_at", since[0]["at"])
        self._last_at = since[-1]["at"]
        mtp = [entry["mtp_loss"] for entry in since if entry["mtp"]]
        measured = self.measure(self.trainee) if self.measure and self._due(self.config.eval_steps) else None
        metrics = Metrics(
            step=self._step,
            tokens=self._step * self.config.batch_tokens,
            loss=_mean([entry["loss"] for entry in since]),
            mtp_loss=_mean(mtp) if mtp else None,
            balance=_mean([entry["balance"] for entry in since]),
            grad_norm=_mean([entry["grad_norm"] for entry in since]),
            learning_rate=learning_rate(self.config, self._step - 1),
            tokens_per_second=len(since) * self.config.batch_tokens / max(1e-9, self._last_at - first),
            cpu_seconds=self._cpu,
            max_violation=violation,
            dead_experts=dead,
            held_out_bpb=measured,
            alarm=_alarm(violation, dead),
        )
        append(self.config.out / LOG, metrics)
        return metrics

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(number: int, frame: FrameType | None) -> None:
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


def make_optimizer(trainee: Trainee, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW(0.9, 0.95) with decay on matrices only, as every DeepSeek report has it."""
    matrices = [w for key, w in trainee.trained.items() if w.ndim > 1 and key != "embed"]
    others = [w for key, w in trainee.trained.items() if w.ndim == 1 or key == "embed"]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)


def _balance_of(counts: list[dict[int, Tensor]]) -> tuple[float, int]:
    """Over some steps: how far the busiest expert of any layer is above its share, and how many are starved."""
    worst, dead = 0.0, 0
    for layer in counts[-1] if counts else ():
        total_E = torch.stack([step[layer] for step in counts if layer in step]).sum(0).float()
        share_E = total_E / total_E.mean()
        worst = max(worst, float(share_E.max()) - 1)
        dead += int((share_E < STARVED).sum())
    return worst, dead


def _alarm(violation: float, dead: int) -> str:
    if dead:
        return f"{dead} experts get next to no tokens"
    return f"an expert gets {violation + 1:.1f} times its share" if violation > COLLAPSED else ""


def _forget_after(path: Path, step: int) -> None:
    """Drop log lines of steps that the checkpoint has not seen: they will be written again."""
    if path.is_file():
        lines = [line for line in path.read_bytes().splitlines() if msgspec.json.decode(line)["step"] <= step]
        path.write_bytes(b"".join(line + b"\n" for line in lines))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
