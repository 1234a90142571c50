"""Which engine is closer to what a quantised GGUF file says: Deepwell's logits and llama.cpp's against exact ones.

    python benchmarks/against_llama_cpp.py LLAMA_CPP BUILD                  # the embedded model and seeded ones
    python benchmarks/against_llama_cpp.py LLAMA_CPP BUILD model.gguf ...   # these files (llama, qwen2, deepseek2)

LLAMA_CPP is a checkout of llama.cpp, BUILD its build folder with shared libraries. A small program is compiled against
them, so that both engines run the same file over the same tokens. Both are held against llama.cpp on a float32 copy of
the file; how far Deepwell's decoder on torch in float32 is from that says how exact this reference is. Needs the `dev`
extra. Prints a Markdown table: differences are in standard deviations of the logits, KL in nats per token, "same first"
is how often both prefer one token.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoConfig

ROOT = Path(__file__).parent.parent
for folder in ("tests", "tests/model", "tests/weights"):
    sys.path.insert(0, str(ROOT / folder))

import gguf_files  # noqa: E402

from deepwell.loading.load import CacheDType, NativeRunner  # noqa: E402
from deepwell.model.decoder import Decoder  # noqa: E402
from deepwell.ops.base import Batch  # noqa: E402
from deepwell.ops.torch_ops import TorchOps  # noqa: E402
from deepwell.weights import embedded_path  # noqa: E402
from deepwell.weights.gguf.checkpoint import GgufCheckpoint  # noqa: E402
from deepwell.weights.tokenizer import Tokenizer  # noqa: E402

Logits = NDArray[np.float64]
TOKENS = 256
KINDS = {"q8_0": Type.Q8_0, "q4_0": Type.Q4_0, "q4_k": Type.Q4_K}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the accuracy of Deepwell and llama.cpp on GGUF files.")
    parser.add_argument("llama_cpp", type=Path, help="checkout of llama.cpp, for its headers")
    parser.add_argument("build", type=Path, help="its build folder, with libllama and libggml")
    parser.add_argument("models", type=Path, nargs="*", help="GGUF files; seeded ones are written if there are none")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        theirs = LlamaCpp(args.llama_cpp, args.build, Path(scratch), args.threads)
        print("| model | engine | max | mean | KL | same first |\n|---|---|---|---|---|---|")
        for file in args.models or [*write_embedded(Path(scratch)), *write_seeded(Path(scratch))]:
            compare(file, theirs, Path(scratch))


class LlamaCpp:
    """llama.cpp behind a small program compiled here."""

    def __init__(self, source: Path, build: Path, scratch: Path, threads: int) -> None:
        self._program, self._scratch, self._threads = scratch / "llama_cpp_logits", scratch, threads
        libraries = next(build.rglob("libllama.so")).parent
        command: list[str | Path] = ["c++", "-std=c++17", "-O1", ROOT / "benchmarks/llama_cpp_logits.cpp"]
        command += ["-o", self._program, f"-I{source / 'include'}", f"-I{source / 'ggml/include'}", f"-L{libraries}"]
        command += ["-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}"]
        subprocess.run(command, check=True)

    def logits(self, model: Path, tokens_T: NDArray[np.int32]) -> Logits:
        given, out = self._scratch / "tokens", self._scratch / "logits"
        tokens_T.tofile(given)
        subprocess.run([self._program, model, given, out, str(self._threads)], check=True)
        return np.fromfile(out, np.float32).reshape(len(tokens_T), -1).astype(np.float64)

    def tokens(self, model: Path, text: str) -> NDArray[np.int32]:
        given, out = self._scratch / "text", self._scratch / "tokens"
        given.write_text(text, "utf-8")
        subprocess.run([self._program, model, given, out], check=True)
        return np.fromfile(out, np.int32)


def write_embedded(folder: Path) -> Iterator[Path]:
    """The trained model that Deepwell brings, whose rows have no blocks of 256; tokens are named by their numbers."""
    config = AutoConfig.from_pretrained(embedded_path())
    saved = load_file(embedded_path() / "model.safetensors")
    module = f"model.layers.{config.num_hidden_layers}."
    saved = {name: value.float().numpy() for name, value in saved.items() if not name.startswith(module)}

    def name_tokens(writer: gguf.GGUFWriter, arrays: gguf_files.Arrays) -> None:
        tokens = writer.kv_data[0]["tokenizer.ggml.tokens"].value
        tokens += [f"token {number}" for number in range(len(tokens), config.vocab_size)]
        types = writer.kv_data[0]["tokenizer.ggml.token_type"].value
        types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))

    for kind in ("q8_0", "q4_0"):
        file = folder / f"embedded-{kind}.gguf"
        choose = functools.partial(quantised, wanted=KINDS[kind])
        yield gguf_files.write(file, config, saved, "deepseek2", quantise=choose, change=name_tokens)


def write_seeded(folder: Path) -> list[Path]:
    files = []
    for name in ("qwen2-wide", "v3-wide"):
        for kind, type in KINDS.items():
            _, file = gguf_files.save(name, folder / kind, quantise=functools.partial(quantised, wanted=type))
            files.append(file.rename(folder / f"{name}-{kind}.gguf"))
    return files


def quantised(tensor: str, wanted: Type) -> Type:
    """As llama-quantize does it: routers stay float, rows that are no whole blocks of 256 get blocks of 32."""
    if "ffn_gate_inp" in tensor:
        return Type.F32
    return Type.Q5_0 if wanted == Type.Q4_K and "attn_k_b" in tensor else wanted


def compare(file: Path, llama_cpp: LlamaCpp, scratch: Path) -> None:
    checkpoint = GgufCheckpoint(file)
    tokens = np.random.default_rng(0).integers(0, min(checkpoint.config.vocab, 30_000), TOKENS).astype(np.int32)
    if file.stem.startswith("embedded"):
        text = Path(__file__).read_text("utf-8")
        tokens = np.array(Tokenizer.load(embedded_path()).encode(text)[:TOKENS], np.int32)
    plain = scratch / "float32.gguf"
    copy_as_float32(checkpoint, file, plain)
    wanted = llama_cpp.logits(plain, tokens)
    plain.unlink()
    row(file.stem, "torch, float32", torch_logits(checkpoint, tokens), wanted)
    row(file.stem, "llama.cpp", llama_cpp.logits(file, tokens), wanted)
    caches: tuple[CacheDType, ...] = ("bfloat16", "float32")
    for cache in caches:
        row(file.stem, f"Deepwell, cache {cache}", deepwell_logits(checkpoint, tokens, cache), wanted)


def torch_logits(checkpoint: GgufCheckpoint, tokens_T: NDArray[np.int32]) -> Logits:
    decoder = Decoder(checkpoint.config, {p.key: torch.from_numpy(checkpoint.whole(p)) for p in checkpoint.params})
    ops = TorchOps(torch.from_numpy(tokens_T.astype(np.int64))[None])
    with torch.no_grad():
        return decoder.logits(ops, decoder.hidden(ops)).numpy().astype(np.float64)


def deepwell_logits(checkpoint: GgufCheckpoint, tokens_T: NDArray[np.int32], cache: CacheDType) -> Logits:
    rows = np.arange(len(tokens_T), dtype=np.int32)
    pages = np.arange(-(-len(rows) // 64), dtype=np.int32)[None]
    runner = NativeRunner(checkpoint, "auto", cache_dtype=cache, blocks=pages.size)
    return runner.run(Batch(tokens_T, rows, np.zeros_like(rows), pages, rows)).astype(np.float64)


def copy_as_float32(checkpoint: GgufCheckpoint, file: Path, out: Path) -> None:
    """The same file with the values its blocks stand for; metadata are copied as they are."""
    reader = gguf.GGUFReader(file)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    writer = gguf.GGUFWriter(out, fields.pop("general.architecture").contents())
    for name, field in fields.items():
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if array else None)
    for name, tensor in checkpoint.tensors.items():
        writer.add_tensor(name, tensor.float32())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def row(model: str, engine: str, got: Logits, wanted: Logits) -> None:
    difference = np.abs(got - wanted) / wanted.std()
    p, q = log_softmax(wanted), log_softmax(got)
    kl = (np.exp(p) * (p - q)).sum(1).mean()
    same = (got.argmax(1) == wanted.argmax(1)).mean()
    numbers = f"{difference.max():.1e} | {difference.mean():.1e} | {kl:.1e} | {same:.1%}"
    print(f"| {model} | {engine} | {numbers} |", flush=True)


def log_softmax(x: Logits) -> Logits:
    shifted = x - x.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


if __name__ == "__main__":
    main()
