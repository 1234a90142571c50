"""Names of models that need no ORG: the released ones, and quantised files of well-known small ones.

One table says where each lies on a hub, about how large it is (parameters times bits; the hub says it exactly before a
download) and under which licence its makers published it. Pure and light: completion reads it on every Tab.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache

import msgspec

from deepwell.errors import ConfigError


class Known(msgspec.Struct, frozen=True):
    """A name as one types it, NAME or NAME:QUANTISATION; `place` is ORG/NAME[:FILE], `size` is in bytes, about."""

    name: str
    place: str
    size: int
    licence: str

    @property
    def kind(self) -> str:
        """The quantisation of a GGUF file, or safetensors."""
        return self.name.partition(":")[2] or "safetensors"

    @property
    def repo(self) -> str:
        return self.place.partition(":")[0]


@cache
def known() -> tuple[Known, ...]:
    """All of them: the released models, then quantised files."""
    found = []
    for line in _TABLE.strip().splitlines():
        name, repo, size, licence = line.split()
        file = name.partition(":")[2]
        found.append(Known(name, f"{repo}:{file}" if file else repo, round(float(size) * 1e9), _LICENCES[licence]))
    return tuple(found)


def find(text: str) -> Known | None:
    """What a short name means; capitals do not count.

    NAME alone is its first row; NAME:QUANTISATION may also name another file of the same GGUF repository. The name
    of a listed repository, without its ORG, is as good.
    """
    name, _, file = text.lower().partition(":")
    rows = [row for row in known() if name in (row.name.partition(":")[0].lower(), row.repo.partition("/")[2].lower())]
    if not file:
        return rows[0] if rows else None
    quantised = [row for row in rows if ":" in row.name]
    exact = [row for row in quantised if row.name.lower().endswith(f":{file}")]
    if exact or not quantised:
        return exact[0] if exact else None
    row, wanted = quantised[0], text.partition(":")[2]
    return Known(f"{row.name.partition(':')[0]}:{wanted}", f"{row.repo}:{wanted}", 0, row.licence)


def licence_of(repo: str) -> str | None:
    """The licence of a listed repository."""
    return next((row.licence for row in known() if row.repo.lower() == repo.lower()), None)


class UnknownModel(ConfigError):
    """What was given as a model is no path of this machine and no name."""


def unknown_name(text: str, *others: str) -> ConfigError:
    """What to say when `text` is no model; `others` are names that would do too, beside those of the table."""
    if "deepseek-v4" in text.lower():
        return ConfigError(f"{text!r} is DeepSeek-V4 or later, whose weights Deepwell cannot run yet")
    close = nearest(text, *others)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    if "/" in text:
        hint += "of a hub's models, it tells of those that `deepwell pull` has fetched; "
    return UnknownModel(
        f"{text!r} is no file or folder here and no name of a model; {hint}`deepwell models` lists the names, "
        "and ORG/NAME of a hub and paths do as well"
    )


def nearest(text: str, *others: str) -> list[str]:
    """The names most like `text`, at most three: those with all its words, then those spelled like it."""
    names = {name.lower(): name for name in (*(row.name for row in known()), *others)}
    short = text.lower().rpartition("/")[2].partition(":")[0]
    words = re.findall(r"[^-_ /]+", short)
    close = [name for name in names if words and all(word in name for word in words)]
    close += get_close_matches(text.lower(), names, 3, 0.7)
    spelled = {name.rpartition("/")[2].partition(":")[0]: name for name in reversed(names)}
    for spelling in (short, f"deepseek-{short}"):
        close += [spelled[name] for name in get_close_matches(spelling, spelled, 3, 0.8)]
    return [names[name] for name in dict.fromkeys(close)][:3]


# DeepSeek: the DeepSeek Model License. Of the distillations from Llama, the base's licence holds beside the own one.
_LICENCES = {
    "MIT": "MIT",
    "Apache": "Apache-2.0",
    "DeepSeek": "DeepSeek",
    "Llama-3.1": "MIT/Llama 3.1",
    "Llama-3.2": "Llama 3.2",
    "Llama-3.3": "MIT/Llama 3.3",
}

# Name, repository, GB, licence. Where a model has variants, the one that chats.
_TABLE = """
DeepSeek-LLM-7B                      deepseek-ai/deepseek-llm-7b-chat                13.8    DeepSeek
DeepSeek-LLM-67B                     deepseek-ai/deepseek-llm-67b-chat               134.9   DeepSeek
DeepSeek-Coder-1.3B                  deepseek-ai/deepseek-coder-1.3b-instruct        2.7     DeepSeek
DeepSeek-Coder-5.7BMQA               deepseek-ai/deepseek-coder-5.7bmqa-base         11.4    DeepSeek
DeepSeek-Coder-6.7B                  deepseek-ai/deepseek-coder-6.7b-instruct        13.5    DeepSeek
DeepSeek-Coder-33B                   deepseek-ai/deepseek-coder-33b-instruct         66.7    DeepSeek
DeepSeek-Coder-7B-v1.5               deepseek-ai/deepseek-coder-7b-instruct-v1.5     13.8    DeepSeek
DeepSeek-Math-7B                     deepseek-ai/deepseek-math-7b-instruct           13.8    DeepSeek
DeepSeek-Prover-V1                   deepseek-ai/DeepSeek-Prover-V1                  13.8    DeepSeek
DeepSeek-Prover-V1.5                 deepseek-ai/DeepSeek-Prover-V1.5-RL             13.8    DeepSeek
DeepSeek-Prover-V2-7B                deepseek-ai/DeepSeek-Prover-V2-7B               13.8    DeepSeek
DeepSeek-MoE-16B                     deepseek-ai/deepseek-moe-16b-chat               32.8    DeepSeek
DeepSeek-V2-Lite                     deepseek-ai/DeepSeek-V2-Lite-Chat               31.4    DeepSeek
DeepSeek-Coder-V2-Lite               deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct     31.4    DeepSeek
DeepSeek-V2                          deepseek-ai/DeepSeek-V2-Chat                    471.5   DeepSeek
DeepSeek-Coder-V2                    deepseek-ai/DeepSeek-Coder-V2-Instruct          471.5   DeepSeek
DeepSeek-V2.5                        deepseek-ai/DeepSeek-V2.5                       471.5   DeepSeek
DeepSeek-V3                          deepseek-ai/DeepSeek-V3                         688.5   DeepSeek
DeepSeek-V3-0324                     deepseek-ai/DeepSeek-V3-0324                    688.5   MIT
DeepSeek-R1-Zero                     deepseek-ai/DeepSeek-R1-Zero                    688.5   MIT
DeepSeek-R1                          deepseek-ai/DeepSeek-R1                         688.5   MIT
DeepSeek-R1-0528                     deepseek-ai/DeepSeek-R1-0528                    688.5   MIT
DeepSeek-Prover-V2-671B              deepseek-ai/DeepSeek-Prover-V2-671B             688.5   DeepSeek
DeepSeek-V3.1                        deepseek-ai/DeepSeek-V3.1                       688.5   MIT
DeepSeek-V3.1-Terminus               deepseek-ai/DeepSeek-V3.1-Terminus              688.5   MIT
DeepSeek-V3.2-Exp                    deepseek-ai/DeepSeek-V3.2-Exp                   689.4   MIT
DeepSeek-V3.2                        deepseek-ai/DeepSeek-V3.2                       689.4   MIT
DeepSeek-V3.2-Speciale               deepseek-ai/DeepSeek-V3.2-Speciale              689.4   MIT
DeepSeek-Math-V2                     deepseek-ai/DeepSeek-Math-V2                    689.4   Apache
DeepSeek-R1-Distill-Qwen-1.5B        deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B       3.6     MIT
DeepSeek-R1-Distill-Qwen-7B          deepseek-ai/DeepSeek-R1-Distill-Qwen-7B         15.2    MIT
DeepSeek-R1-Distill-Llama-8B         deepseek-ai/DeepSeek-R1-Distill-Llama-8B        16.1    Llama-3.1
DeepSeek-R1-0528-Qwen3-8B            deepseek-ai/DeepSeek-R1-0528-Qwen3-8B           16.4    MIT
DeepSeek-R1-Distill-Qwen-14B         deepseek-ai/DeepSeek-R1-Distill-Qwen-14B        29.5    MIT
DeepSeek-R1-Distill-Qwen-32B         deepseek-ai/DeepSeek-R1-Distill-Qwen-32B        65.5    MIT
DeepSeek-R1-Distill-Llama-70B        deepseek-ai/DeepSeek-R1-Distill-Llama-70B       141.1   Llama-3.3
SmolLM2-135M-Instruct:Q4_K_M         bartowski/SmolLM2-135M-Instruct-GGUF            0.105   Apache
SmolLM2-360M-Instruct:Q8_0           HuggingFaceTB/SmolLM2-360M-Instruct-GGUF        0.386   Apache
Qwen2.5-0.5B-Instruct:Q4_K_M         Qwen/Qwen2.5-0.5B-Instruct-GGUF                 0.491   Apache
Qwen2.5-Coder-0.5B-Instruct:Q4_K_M   Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF           0.491   Apache
Qwen3-0.6B:Q8_0                      Qwen/Qwen3-0.6B-GGUF                            0.64    Apache
Llama-3.2-1B-Instruct:Q4_K_M         bartowski/Llama-3.2-1B-Instruct-GGUF            0.81    Llama-3.2
DeepSeek-Coder-1.3B:Q4_K_M           TheBloke/deepseek-coder-1.3b-instruct-GGUF      0.87    DeepSeek
Qwen2.5-1.5B-Instruct:Q4_K_M         Qwen/Qwen2.5-1.5B-Instruct-GGUF                 1.12    Apache
Qwen2.5-Coder-1.5B-Instruct:Q4_K_M   Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF           1.12    Apache
DeepSeek-R1-Distill-Qwen-1.5B:Q4_K_M unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF      1.12    MIT
DeepSeek-R1-Distill-Qwen-7B:Q4_K_M   unsloth/DeepSeek-R1-Distill-Qwen-7B-GGUF        4.7     MIT
DeepSeek-R1-Distill-Llama-8B:Q4_K_M  unsloth/DeepSeek-R1-Distill-Llama-8B-GGUF       4.9     Llama-3.1
DeepSeek-R1-0528-Qwen3-8B:Q4_K_M     unsloth/DeepSeek-R1-0528-Qwen3-8B-GGUF          5.0     MIT
DeepSeek-V2-Lite:Q4_K_M              mradermacher/DeepSeek-V2-Lite-Chat-GGUF         10.4    DeepSeek
DeepSeek-Coder-V2-Lite:Q4_K_M        bartowski/DeepSeek-Coder-V2-Lite-Instruct-GGUF  10.4    DeepSeek
"""
