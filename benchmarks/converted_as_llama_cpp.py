"""Are the GGUF files that `deepwell convert` writes those of llama.cpp's own converter?

    python benchmarks/converted_as_llama_cpp.py LLAMA_CPP [NAME ...]

LLAMA_CPP is a checkout of llama.cpp. Seeded random checkpoints of every architecture, with the embedded model's
tokenizer, are converted by both to bfloat16. Prints a line per model: how many tensors there are, those that differ in
name, type, shape or bytes, and the metadata that differ. Needs the `dev` extra, and what the converter imports
(sentencepiece). Exits with 1 if a tensor differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from against_llama_cpp import gguf_files

from deepwell.loading.convert import prepare
from deepwell.weights import embedded_path

seeded = gguf_files.seeded
_THEIRS = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "deepseek-v3"
import convert_hf_to_gguf
sys.argv = ["convert", sys.argv[2], "--outfile", sys.argv[3], "--outtype", "bf16"]
convert_hf_to_gguf.main()
"""
"""The converter knows tokenizers by their hashes, and not this one."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare convert's GGUF files with those of llama.cpp's converter.")
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("names", nargs="*", default=list(seeded.CONFIGS))
    args = parser.parse_args()
    seeded._BASE["vocab_size"] = 4096
    with tempfile.TemporaryDirectory() as scratch:
        return max([compare(name, args.llama_cpp, Path(scratch)) for name in args.names])


def compare(name: str, llama_cpp: Path, scratch: Path) -> int:
    folder, ours, theirs = scratch / name, scratch / f"{name}.gguf", scratch / f"{name}-theirs.gguf"
    seeded.save(name, folder, dtype=torch.bfloat16)
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(embedded_path() / file, folder)
    prepare(folder, "gguf").write(ours, lambda done, total: None)
    environ = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", _THEIRS, str(llama_cpp), str(folder), str(theirs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        print(f"{name}: llama.cpp's converter fails: {done.stderr.splitlines()[-1]}", flush=True)
        return 0
    (facts, tensors), (their_facts, their_tensors) = read(ours), read(theirs)
    apart = [key for key in sorted(tensors.keys() | their_tensors.keys()) if differ(key, tensors, their_tensors)]
    keys = [key for key in sorted(facts.keys() | their_facts.keys()) if not alike(facts.get(key), their_facts.get(key))]
    told = ", ".join(f"{key} {_short(facts.get(key))} ({_short(their_facts.get(key))})" for key in keys)
    print(f"{name}: {len(tensors)} tensors, {len(apart)} differ {apart}; keys (theirs): {told}", flush=True)
    return int(bool(apart))


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(file)
    facts = {key: field.contents() for key, field in reader.fields.items()}
    kept = {key: value for key, value in facts.items() if not key.startswith(("GGUF.", "general."))}
    return kept, {tensor.name: tensor for tensor in reader.tensors}


def differ(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    if name not in ours or name not in theirs:
        return True
    one, other = ours[name], theirs[name]
    same = one.tensor_type == other.tensor_type and one.shape.tolist() == other.shape.tolist()
    return not (same and np.array_equal(one.data, other.data))


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-6))
    return bool(one == other)


def _short(value: Any) -> str:
    return "none" if value is None else str(value)[:40]


if __name__ == "__main__":
    sys.exit(main())
