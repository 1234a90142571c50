"""First light: the published checkpoint speaks through plain transformers, and says the same through Deepwell's engine.

    python examples/first_light.py [MODEL_FOLDER]

Needs `transformers` and `torch` beside Deepwell. Prints each continuation and exits with 1 if one token differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepwell.engine.core import EngineCore
from deepwell.engine.types import Request, SamplingParams
from deepwell.loading.load import load_model
from deepwell.weights import embedded_path

PROMPTS = ("def read_lines(path):\n    ", "import os\nimport sys\n\nclass ", '"""Utilities for working with dates')
NEW_TOKENS = 64


def by_transformers(folder: Path) -> list[list[int]]:
    """Greedy continuations of PROMPTS, each begun with BOS, as token ids."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    answers = []
    for prompt in PROMPTS:
        ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
        with torch.no_grad():
            out = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
        answers.append(out[0, len(ids) :].tolist())
    return answers


def by_deepwell(folder: Path) -> list[list[int]]:
    """The same continuations by the serving engine. The token that ends a text is counted, as transformers does."""
    model = load_model(folder)
    core = EngineCore(model.runner, model.tokenizer)
    answers = []
    for prompt in PROMPTS:
        ids = (model.tokenizer.bos or 0, *model.tokenizer.encode(prompt))
        sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0)
        request = Request(id="first-light", prompt=ids, sampling=sampling)
        answers.append([token for delta in core.generate(request) for token in delta.token_ids])
    return answers


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else embedded_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    same = True
    for prompt, theirs, ours in zip(PROMPTS, by_transformers(folder), by_deepwell(folder), strict=True):
        same &= theirs == ours
        print(f"--- {'same' if theirs == ours else 'DIFFERENT'}, {len(ours)} tokens\n{prompt}{tokenizer.decode(ours)}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
