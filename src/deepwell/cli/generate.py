"""`deepwell generate`: continue a text, or fill the gap before a suffix, and print it as it comes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from deepwell.chat import render_fim, render_text
from deepwell.cli.answering import answer, cut, sampling_of
from deepwell.cli.hub import names_model
from deepwell.cli.interrupts import EXIT_INTERRUPTED, Interrupts, Stopped
from deepwell.cli.model import engine_config, load
from deepwell.cli.questions import piped
from deepwell.cli.terminal import show
from deepwell.engine import EngineCore, FinishReason, Request, Usage
from deepwell.engine.types import Delta
from deepwell.errors import ConfigError, DeepwellError, RequestError
from deepwell.loading.load import LoadedModel
from deepwell.options import GenerateOptions


class Generated(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    model: str
    text: str
    finish_reason: FinishReason | None
    usage: Usage | None


def run(options: GenerateOptions) -> int:
    options = _model_alone(options)
    prompt = _standard_input() if options.prompt == "-" else options.prompt
    model = load(options)
    request = _request(model, prompt, options)
    core = EngineCore(model.runner, model.tokenizer, engine_config(options))
    texts: list[str] = []
    last = Delta(finish_reason="abort")
    with Interrupts() as interrupts:
        try:
            for last in answer(core, request, interrupts.check):
                texts.append(last.text)
                if not options.json:
                    show(last.text)
        except Stopped:
            last = Delta(finish_reason="abort")
    if last.error:
        raise DeepwellError(last.error)
    if options.json:
        generated = Generated(model.name, "".join(texts), last.finish_reason, last.usage)
        print(msgspec.json.encode(generated).decode())
    else:
        _end(last, options)
    return EXIT_INTERRUPTED if last.finish_reason == "abort" else 0


def _model_alone(options: GenerateOptions) -> GenerateOptions:
    """An argument alone that is a model is MODEL, and no text to continue."""
    if not names_model(options.prompt):
        return options
    if options.model is not None:
        raise ConfigError(f"{options.prompt} is a model, as {options.model} is; the text to continue is missing")
    return msgspec.structs.replace(options, model=Path(os.path.expanduser(options.prompt)), prompt="-")


def _standard_input() -> str:
    if sys.stdin.isatty():
        print("deepwell: type the text to continue; Ctrl-D on a line of its own ends it", file=sys.stderr, flush=True)
    if not (prompt := piped()):
        raise RequestError("there is no text to continue: give one, or send one through a pipe")
    return prompt


def _request(model: LoadedModel, prompt: str, options: GenerateOptions) -> Request:
    if options.fim_suffix is None:
        tokens = render_text(prompt, model.tokenizer)
    else:
        tokens = render_fim(prompt, options.fim_suffix, model.tokenizer)
    room = model.runner.context - len(tokens)
    if room < 1:
        raise RequestError(f"the prompt has {len(tokens):,} tokens; at most {model.runner.context - 1:,} fit")
    sampling = sampling_of(options, model.advice, room)
    return Request(id="generate", prompt=tokens, sampling=sampling)


def _end(last: Delta, options: GenerateOptions) -> None:
    """What is told beside the text, apart from it."""
    if sys.stdout.isatty():
        print(flush=True)
    if said := "stopped" if last.finish_reason == "abort" else cut(last, options):
        print(f"[{said}]", file=sys.stderr, flush=True)
