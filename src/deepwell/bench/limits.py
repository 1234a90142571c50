"""What this machine allows: how fast memory is read, and how fast numbers are multiplied.

Shared machines change speed within seconds, so a limit is worth most when it is measured right beside what it judges.
The native backend is imported only to measure: `deepwell doctor` must be able to say that it does not load.
"""

from __future__ import annotations

from statistics import median

import msgspec

from deepwell.loading.machine import free_memory, inspect_machine
from deepwell.model.config import ModelConfig

_READ_BYTES = 1 << 30
_QUICK_READ_BYTES = 1 << 29
"""Far more than any cache of a desktop processor, and read in tens of milliseconds."""
_LEAST_READ_BYTES = 1 << 24
_ROUNDS = 16
_QUICK_ROUNDS = 6


class Rate(msgspec.Struct, frozen=True):
    """Per second, of all threads together; `what` names the instruction or the buffer. An empty list has no Rate."""

    what: str
    best: float
    median: float


class Limits(msgspec.Struct, frozen=True):
    """`read` is bytes per second; the others are operations per second (a multiply-add is two), None where missing."""

    threads: int
    read: Rate
    int8: Rate | None
    bf16: Rate | None
    fma: Rate | None


def measure_limits(threads: int) -> Limits:
    """Measure everything, in a second or two. Sets the number of threads of this process."""
    from deepwell import _native

    _native.set_threads(threads)
    size = _affordable(_READ_BYTES)
    rates = _native.read_bandwidth(size, _ROUNDS)
    return Limits(
        threads=threads,
        read=Rate(f"{size >> 20} MiB", max(rates), median(rates)),
        int8=_peak("int8"),
        bf16=_peak("bf16"),
        fma=_peak("fma"),
    )


def read_speed() -> float:
    """Bytes per second that all threads read now, the median of a few rounds."""
    from deepwell import _native

    return median(_native.read_bandwidth(_affordable(_QUICK_READ_BYTES), _QUICK_ROUNDS))


def int8_speed() -> float | None:
    """Operations per second of 8-bit dot products that all threads reach now; None without such an instruction."""
    from deepwell import _native

    found = _native.peak("int8", _QUICK_ROUNDS)
    return median(found[1]) if found else None


def prefill_ops(config: ModelConfig, active_params: int) -> int:
    """Operations per prompt token in matrices: two per active parameter, embedding and head left out.

    A prompt needs logits only at its end, and reads its embedding rows without arithmetic. `active_params` is the
    accounting's, which counts the head, and the embedding as one row (whole where it is the head too).
    """
    head = config.vocab * config.hidden
    row = 0 if config.tied else config.hidden
    return 2 * (active_params - head - row)


def _peak(kind: str) -> Rate | None:
    from deepwell import _native

    found = _native.peak(kind, _ROUNDS)
    return Rate(found[0], max(found[1]), median(found[1])) if found else None


def _affordable(size: int) -> int:
    return max(_LEAST_READ_BYTES, min(size, free_memory(inspect_machine()) // 4))
