"""How much memory a step takes at most: a seeded checkpoint, and a process of its own that loads or converts it.

python memory_use.py load|convert SOURCE OUT_OR_DTYPE [DTYPE]    prints a JSON object of bytes
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from deepwell.model.config import MlaConfig, ModelConfig, MoeConfig
from deepwell.model.config_json import config_json
from deepwell.model.params import param_specs
from deepwell.model.rope import RopeConfig
from deepwell.ops.base import Routing

CONFIG = ModelConfig(
    family="deepseek_v2",
    vocab=32768,
    hidden=1024,
    layers=3,
    heads=8,
    kv_heads=8,
    head_dim=192,
    inter=4096,
    eps=1e-6,
    rope=RopeConfig(),
    context=256,
    mla=MlaConfig(q_lora=None, kv_lora=512, nope=128, rope=64, value=128),
    moe=MoeConfig(Routing(16, 2, "softmax", "greedy", 1, 1, False, 1.0), 768, 1, 1, False),
)
"""About 170 million values; the embedding and the head have a fifth each."""
LARGEST = CONFIG.vocab * CONFIG.hidden
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


class _File:
    """Tensors of random values, each repeating the same megabyte."""

    def __init__(self) -> None:
        pool = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * np.float32(0.02)
        self._values = (pool.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint8)
        self._codes = self._values & np.uint8(0x77)  # none of them is no number
        self._header: dict[str, object] = {}
        self._data: list[tuple[np.ndarray, int]] = []
        self._size = 0

    def add(self, name: str, shape: tuple[int, ...], *, quantised: bool) -> None:
        size = int(np.prod(shape))
        if not quantised:
            self._place(name, "BF16", shape, self._values, 2 * size)
            return
        self._place(name, "F8_E4M3", shape, self._codes, size)
        scales = np.full((-(-shape[0] // 128), -(-shape[1] // 128)), 0.01, np.float32)
        self._place(f"{name}_scale_inv", "F32", scales.shape, scales.reshape(-1).view(np.uint8), scales.nbytes)

    def write(self, file: Path) -> None:
        raw = json.dumps(self._header).encode()
        with file.open("wb") as out:
            out.write(len(raw).to_bytes(8, "little") + raw)
            for data, size in self._data:
                for begin in range(0, size, len(data)):
                    out.write(data[: size - begin].data)

    def _place(self, name: str, dtype: str, shape: tuple[int, ...], data: np.ndarray, size: int) -> None:
        self._header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [self._size, self._size + size]}
        self._data.append((data, size))
        self._size += size


def write_checkpoint(folder: Path, kind: str) -> Path:
    """A folder of bfloat16 or block FP8, without a tokenizer."""
    folder.mkdir()
    file = _File()
    for param in param_specs(CONFIG):
        rows = int(np.prod(param.shape[:-1] if len(param.shape) > 1 else param.shape)) // len(param.sources)
        shape = (rows, param.shape[-1]) if len(param.shape) > 1 else (rows,)
        quantised = kind == "fp8" and param.kind in ("matrix", "experts", "kv_b") and param.key != "head"
        for source in param.sources:
            file.add(source, shape, quantised=quantised)
    file.write(folder / "model.safetensors")
    config = config_json(CONFIG, bos=0, eos=1, dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(config | ({"quantization_config": FP8} if kind == "fp8" else {})))
    return folder


def measured(*args: str | Path) -> dict[str, int]:
    """What this file, run with these arguments, says."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, args)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def _peak() -> int:
    """Not getrusage's, which a process inherits from the one that started it."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _load(source: str, dtype: str) -> dict[str, int]:
    from deepwell.loading.runner import NativeRunner
    from deepwell.ops import native
    from deepwell.weights.source import open_source

    opened = open_source(Path(source))
    native.set_threads(1)
    before = _peak()
    runner = NativeRunner(opened, dtype, blocks=1)  # type: ignore[arg-type]
    result = sum(handle.nbytes for handle in runner.handles.values() if hasattr(handle, "nbytes"))
    return {"taken": _peak() - before, "result": result}


def _convert(source: str, out: str, dtype: str) -> dict[str, int]:
    from deepwell.loading.convert import prepare, target_of

    before = _peak()
    prepared = prepare(Path(source), target_of(Path(out)), dtype)
    prepared.write(Path(out), lambda done, total: None)
    return {"taken": _peak() - before, "result": prepared.bytes}


if __name__ == "__main__":
    print(json.dumps({"load": _load, "convert": _convert}[sys.argv[1]](*sys.argv[2:])))
