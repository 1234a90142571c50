"""Block-scaled FP8 as DeepSeek-V3, R1 and V3.1 publish it: each weight beside a tensor of scales, one per block.

`config.json` says `quantization_config`: quant_method `fp8`, fmt `e4m3`, weight_block_size [128, 128]. A weight of
shape (N, K) has a `<name>_scale_inv` of shape (ceil(N/128), ceil(K/128)), float32 or, for powers of two, E8M0.
Despite the name, the value is weight * scale. What is not quantised (embedding, head, norms, router) has no scales.
Activations, which other engines round to FP8 too, stay float32 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.errors import CheckpointError
from deepwell.weights.safetensors import Tensor
from deepwell.weights.values import all_finite

SCALES = "_scale_inv"
_WEIGHT_TYPES = {"e4m3": "F8_E4M3", "e5m2": "F8_E5M2"}
_SCALE_TYPES = ("F32", "BF16", "F8_E8M0")


class BlockFormat(msgspec.Struct, frozen=True):
    """`rows` x `cols` weights of type `weights` share a scale."""

    weights: str
    rows: int
    cols: int

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (-(-shape[0] // self.rows), -(-shape[1] // self.cols))


class BlockTensor(Tensor):
    """A weight with its scales: a `Tensor` whose values are the products."""

    def __init__(self, weight: Tensor, scales: Tensor, form: BlockFormat) -> None:
        super().__init__(weight.file, weight.name, weight.dtype, weight.shape, weight.raw)
        self._scales, self._form = scales, form

    def rows(self, begin: int, end: int) -> NDArray[np.float32]:
        """weight * scale, rounded once to float32. CheckpointError if a code, a scale or a product is not finite."""
        values, scales = super().rows(begin, end), self._scales.float32()
        if (scales < 0).any():
            raise CheckpointError(f"{self.file.name}: tensor {self._scales.name} holds scales below 0")
        with np.errstate(over="ignore"):
            # a row of blocks at a time, so that the scales never grow to the size of the weights
            height = self._form.rows
            for block in range(begin // height, -(-end // height)):
                rows = values[max(block * height - begin, 0) : (block + 1) * height - begin]
                rows *= np.repeat(scales[block], min(self._form.cols, self.shape[1]))[: self.shape[1]]
                if not all_finite(rows):
                    raise CheckpointError(f"{self.file.name}: tensor {self.name} times its scales leaves float32")
        return values

    def sample(self) -> bytes:
        return super().sample() + self._scales.sample()


def block_format(file: Path, config: Mapping[str, Any]) -> BlockFormat | None:
    """How a parsed config.json says weights are scaled; None if it does not. CheckpointError names what is unknown."""
    said = config.get("quantization_config")
    if said is None:
        return None

    def fail(key: str, value: object, allowed: str) -> CheckpointError:
        return CheckpointError(f"{file}: quantization_config has {key} {value!r}; supported: {allowed}")

    if not isinstance(said, dict):
        raise CheckpointError(f"{file}: quantization_config is {said!r}; supported is an object with quant_method")
    if (method := said.get("quant_method")) != "fp8":
        raise fail("quant_method", method, "fp8, or a checkpoint that is not quantised")
    if (fmt := said.get("fmt", "e4m3")) not in tuple(_WEIGHT_TYPES):
        raise fail("fmt", fmt, ", ".join(_WEIGHT_TYPES))
    if (scheme := said.get("activation_scheme", "dynamic")) != "dynamic":
        raise fail("activation_scheme", scheme, "dynamic")
    if (scale_fmt := said.get("scale_fmt")) not in (None, "float", "ue8m0"):
        raise fail("scale_fmt", scale_fmt, "float, ue8m0")
    block = said.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or any(type(n) is not int or n < 1 for n in block):
        raise fail("weight_block_size", block, "[rows, columns] such as [128, 128]")
    return BlockFormat(_WEIGHT_TYPES[fmt], *block)


def pair(tensors: Mapping[str, Tensor], form: BlockFormat | None) -> dict[str, Tensor]:
    """`tensors` with each FP8 weight joined to its scales, which leave the list.

    CheckpointError for scales without a weight, a weight without scales, and either of a wrong type or shape.
    """
    paired: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALES):
            _check_wanted(tensor, tensors.get(name.removesuffix(SCALES)))
        elif tensor.dtype.startswith("F8_"):
            paired[name] = _join(tensor, tensors.get(name + SCALES), form)
        else:
            paired[name] = tensor
    return paired


def _check_wanted(scales: Tensor, weight: Tensor | None) -> None:
    if weight is None:
        raise CheckpointError(f"{scales.file}: tensor {scales.name} scales a weight that is missing")
    if not weight.dtype.startswith("F8_"):
        raise CheckpointError(f"{scales.file}: tensor {scales.name} scales {weight.name}, which is {weight.dtype}")


def _join(weight: Tensor, scales: Tensor | None, form: BlockFormat | None) -> BlockTensor:
    where = f"{weight.file}: tensor {weight.name}"
    if form is None:
        raise CheckpointError(
            f"{where} is {weight.dtype}, but config.json has no quantization_config that says how it is scaled"
        )
    if weight.dtype != form.weights or len(weight.shape) != 2:
        raise CheckpointError(
            f"{where} is {weight.dtype} of shape {weight.shape}; config.json calls for matrices of {form.weights}"
        )
    if scales is None:
        raise CheckpointError(f"{where} is {weight.dtype}, but its scales, {weight.name}{SCALES}, are missing")
    wanted = form.scales_shape(weight.shape)
    if scales.shape != wanted or scales.dtype not in _SCALE_TYPES:
        raise CheckpointError(
            f"{scales.file}: tensor {scales.name} is {scales.dtype} of shape {scales.shape}; blocks of "
            f"{form.rows} x {form.cols} call for {wanted} in {', '.join(_SCALE_TYPES)}"
        )
    return BlockTensor(weight, scales, form)
