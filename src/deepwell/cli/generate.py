"""`deepwell generate`: continue a text, or fill the gap before a suffix, and print it as it comes."""

from __future__ import annotations

import sys

import msgspec

from deepwell.chat import render_fim, render_text, text_ends
from deepwell.cli.model import engine_config, load, sampling_of
from deepwell.cli.terminal import show
from deepwell.engine import EngineCore, FinishReason, Request, Usage
from deepwell.errors import DeepwellError, RequestError
from deepwell.options import GenerateOptions


class Generated(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    model: str
    text: str
    finish_reason: FinishReason | None
    usage: Usage | None


def run(options: GenerateOptions) -> int:
    prompt = _standard_input() if options.prompt == "-" else options.prompt
    model = load(options)
    if options.fim_suffix is None:
        tokens = render_text(prompt, model.tokenizer)
    else:
        tokens = render_fim(prompt, options.fim_suffix, model.tokenizer)
    core = EngineCore(model.runner, model.tokenizer, engine_config(options))
    sampling = msgspec.structs.replace(sampling_of(options), stop_token_ids=text_ends(model.tokenizer))
    texts: list[str] = []
    last = None
    for last in core.generate(Request(id="generate", prompt=tokens, sampling=sampling)):
        texts.append(last.text)
        if not options.json:
            show(last.text)
    assert last is not None
    if last.error:
        raise DeepwellError(last.error)
    if options.json:
        answer = Generated(model.name, "".join(texts), last.finish_reason, last.usage)
        print(msgspec.json.encode(answer).decode())
    elif sys.stdout.isatty():
        print()
    return 0


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"standard input is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        ) from None
