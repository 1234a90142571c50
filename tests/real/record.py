"""Makes expected.json: what others make of the model. Run by hand: python tests/real/record.py LLAMA_TOKENIZE

- the greedy continuations of transformers, in float32, of the weights as the file has them, as far as every choice is
  sure, so that rounding does not decide;
- the tokens of the odd strings by llama.cpp's `llama-tokenize`, given as its path: a hash for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map
from recorded import EXPECTED, fingerprint
from smollm import PROMPTS, model_file, odd_strings
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

END = 2
TOKENS = 24
SURE, CLEAR = 0.3, 0.6
"""By how many logits the first choice leads where float32's rounding, or that of quantised inputs, cannot decide."""


def llama_tokens(tool: str, text: str) -> list[int]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        flags = ["--ids", "--no-bos", "--no-escape", "--no-parse-special", "--log-disable"]
        command = [tool, "-m", str(model_file()), "-f", file.name, *flags]
        ids = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return [int(id) for id in ids]


def reference() -> LlamaForCausalLM:
    """transformers' model with the values of the file's weights, dequantised by the `gguf` package."""
    reader = GGUFReader(model_file())
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
    )
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, 30)
    weights = {}
    model = LlamaForCausalLM(config).eval()
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    for name, wanted in model.state_dict().items():
        found = names.get_name(name.removesuffix(".weight"))
        tensor = by_name.get(f"{found}.weight", by_name["token_embd.weight"])  # the head is the embedding
        rows = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).reshape(wanted.shape)
        heads = {"attn_q": 9, "attn_k": 3}.get(tensor.name.split(".")[-2])
        if heads:  # the file has the columns of a rotated pair beside each other
            rows = rows.view(heads, -1, 2, 576).transpose(1, 2).reshape(wanted.shape)
        weights[name] = rows.float()
    model.load_state_dict(weights)
    return model


def greedy(prompts: dict[str, list[int]]) -> dict[str, dict[str, Any]]:
    """Continuations up to the end of the turn or a choice that is not SURE, and how many of the first are CLEAR."""
    model = reference()
    told = {}
    for prompt, ids in prompts.items():
        row, seen, leads = list(ids), DynamicCache(), list[float]()
        while len(leads) < TOKENS:
            with torch.inference_mode():
                new = torch.tensor([row[seen.get_seq_length() :]])
                logits = model(new, past_key_values=seen, use_cache=True).logits[0, -1]
            best, next_best = logits.topk(2)[0].tolist()
            best_id = int(logits.argmax())
            if best - next_best < SURE or best_id == END:
                break
            row.append(best_id)
            leads.append(best - next_best)
        clear = next((at for at, lead in enumerate(leads) if lead < CLEAR), len(leads))
        told[prompt] = {"ids": row[len(ids) :], "clear": clear}
        print(f"{prompt!r}: {told[prompt]}", flush=True)
    return told


def main(tool: str) -> None:
    expected = {
        "greedy": greedy({prompt: llama_tokens(tool, prompt) for prompt in PROMPTS}),
        "odd": [fingerprint(llama_tokens(tool, text)) for text in odd_strings()],
    }
    EXPECTED.write_text(json.dumps(expected, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
