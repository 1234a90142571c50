"""How a checkpoint shows which prompt format it was trained on: by its template's text, or else by its tokens.

The template is read, never run, to decide. A template that no sign fits is a stranger's.
"""

from __future__ import annotations

from collections.abc import Callable

from deepwell.weights.tokenizer import Tokenizer

STRANGER = "jinja"

_TURNS = ("<｜User｜>", "<｜Assistant｜>")
_NEW_LINE = ("\\n", "\n")
"""As a template's source spells it."""


def name_of(tokenizer: Tokenizer, model_type: str | None = None) -> str:
    """The name of the format that a checkpoint shows; `model_type` is that of its config."""
    template = tokenizer.template
    if template is not None and template.strip():
        return next((name for name, shows in _SIGNS.items() if shows(template, tokenizer, model_type)), STRANGER)
    return _by_tokens(tokenizer, model_type)


def _by_tokens(tokenizer: Tokenizer, model_type: str | None) -> str:
    """For checkpoints without a template, where V3 stands for V3, R1 and V3.1, and LLM for all that went before."""
    if _has(tokenizer, *_TURNS):
        if _is_v2(tokenizer, model_type):
            return "deepseek-v2.5"
        distilled = model_type in ("qwen2", "qwen3", "llama") and _has(tokenizer, "<think>", "</think>")
        return "deepseek-r1" if distilled else "deepseek-v3"
    if (eot := tokenizer.special("<|EOT|>")) is not None and eot in tokenizer.eos:
        return "deepseek-coder"
    return "deepseek-llm" if _has(tokenizer, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>") else "plain"


def _turns(template: str) -> bool:
    return all(token in template for token in _TURNS)


def _dsml(template: str, tokenizer: Tokenizer, model_type: str | None) -> bool:
    return "｜DSML｜" in template and _turns(template)


def _v32(template: str, tokenizer: Tokenizer, model_type: str | None) -> bool:
    return _dsml(template, tokenizer, model_type) and "function_calls" in template


def _v41(template: str, tokenizer: Tokenizer, model_type: str | None) -> bool:
    return _dsml(template, tokenizer, model_type) and "<｜System｜>" in template


def _r1(template: str, tokenizer: Tokenizer, model_type: str | None) -> bool:
    """Opens the thought and goes on in a new line; or, as R1's first template, strips thoughts and opens none."""
    if not _turns(template) or "</think>" not in template:
        return False
    opens = any("<think>" + line in template for line in _NEW_LINE)
    return opens or not (_switches(template) or "is_last_user" in template)


def _v31(template: str, tokenizer: Tokenizer, model_type: str | None) -> bool:
    return _turns(template) and "</think>" in template and _switches(template)


def _r1_0528(template: str, tokenizer: Tokenizer, model_type: str | None) -> bool:
    return _turns(template) and "</think>" in template


def _v25(template: str, tokenizer: Tokenizer, model_type: str | None) -> bool:
    return _turns(template) and _is_v2(tokenizer, model_type)


def _v3(template: str, tokenizer: Tokenizer, model_type: str | None) -> bool:
    return _turns(template)


def _coder(template: str, tokenizer: Tokenizer, model_type: str | None) -> bool:
    return all(text in template for text in ("### Instruction:", "### Response:", "<|EOT|>"))


def _llm(template: str, tokenizer: Tokenizer, model_type: str | None) -> bool:
    """Turns in words between blank lines; others use the words too, but not with these tokens."""
    words = all(text in template for text in ("User: ", "Assistant: ", "eos_token"))
    return words and any(line * 2 in template for line in _NEW_LINE) and _has(tokenizer, "<｜end▁of▁sentence｜>")


def _switches(template: str) -> bool:
    """Whether the caller may say if the model thinks."""
    return "thinking" in template


def _is_v2(tokenizer: Tokenizer, model_type: str | None) -> bool:
    """V2.5 has V3's template word for word, and V2's vocabulary, which begins sequences with token 100,000."""
    return model_type == "deepseek_v2" or (model_type is None and tokenizer.bos == 100_000)


def _has(tokenizer: Tokenizer, *spellings: str) -> bool:
    return all(tokenizer.special(spelling) is not None for spelling in spellings)


_SIGNS: dict[str, Callable[[str, Tokenizer, str | None], bool]] = {
    "deepseek-v3.2": _v32,
    "deepseek-v4.1": _v41,
    "deepseek-v4": _dsml,
    "deepseek-r1": _r1,
    "deepseek-v3.1": _v31,
    "deepseek-r1-0528": _r1_0528,
    "deepseek-v2.5": _v25,
    "deepseek-v3": _v3,
    "deepseek-coder": _coder,
    "deepseek-llm": _llm,
}
"""What a template must show for a format, the most particular first."""
