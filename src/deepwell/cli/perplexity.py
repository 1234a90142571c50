"""`deepwell perplexity`: how well a model writes down a text, alone and beside a reference."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deepwell.bench.perplexity import Measured, perplexity, windows_of
from deepwell.cli.hub import located
from deepwell.cli.model import describe, load
from deepwell.cli.terminal import visible
from deepwell.errors import ConfigError
from deepwell.files import open_given
from deepwell.loading.load import LoadedModel
from deepwell.options import PerplexityOptions

MAX_TEXT_BYTES = 256 << 20


class Report(msgspec.Struct, frozen=True):
    """What is printed as JSON: the model, how it was kept, and what was measured."""

    model: str
    dtype: str
    cache_dtype: str
    text: str
    result: Measured


def run(options: PerplexityOptions) -> int:
    text = read_text(options.text)
    model = load(options)
    windows = windows_of(model.tokenizer, text, options.window, options.windows)
    reference = _reference(options, model, windows)
    with _progress(len(windows)) as each:
        result = perplexity(
            model.runner,
            windows,
            reference.runner if reference else None,
            name=f"{reference.name} in {reference.dtype}" if reference else "",
            each=each,
        )
    _show(model, result, options)
    return 0


def read_text(place: str) -> str:
    """A text file, or standard input for `-`. ConfigError if it cannot be read, is no UTF-8 or too long."""
    named = "standard input" if place == "-" else place
    try:
        if place == "-":
            raw = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
        else:
            with open_given(Path(place)) as file:
                raw = file.read(MAX_TEXT_BYTES + 1)
        if len(raw) > MAX_TEXT_BYTES:
            raise ConfigError(f"{named}: more than the {MAX_TEXT_BYTES:,} bytes of text that are read at once")
        return raw.decode()
    except OSError as error:
        raise ConfigError(f"{named}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{named}: not UTF-8 at byte {error.start}; the text must be plain UTF-8") from None


def _reference(options: PerplexityOptions, model: LoadedModel, windows: Sequence[Sequence[int]]) -> LoadedModel | None:
    """The reference, loaded beside the model, if it reads texts as the model does."""
    if options.reference is None:
        return None
    wanted = msgspec.structs.replace(
        options,
        model=located(options.reference),
        dtype=options.reference_dtype,
        cache_dtype="float32" if options.reference_dtype == "float32" else options.cache_dtype,
        importance=None,
    )
    reference = load(wanted)
    if any(reference.tokenizer.decode(one) != model.tokenizer.decode(one) for one in windows[:1]):
        raise ConfigError("--reference has another tokenizer than the model; it must be the same model, kept otherwise")
    return reference


@contextmanager
def _progress(windows: int) -> Iterator[Callable[[float], None]]:
    console = Console(stderr=True, highlight=False, markup=False)
    columns = (TextColumn("perplexity {task.fields[so_far]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=windows, so_far="")
        yield lambda so_far: progress.update(task, advance=1, so_far=f"{so_far:.3f}")


def _show(model: LoadedModel, result: Measured, options: PerplexityOptions) -> None:
    if options.json:
        report = Report(model.name, model.dtype, model.runner.cache_dtype, options.text, result)
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
        return
    print(f"{visible(model.name)}: {describe(model)}")
    print(f"{result.windows} windows of {result.window} tokens, {result.tokens:,} tokens scored")
    print(f"perplexity    {result.perplexity:.4f} ± {result.error:.4f}")
    if (like := result.likeness) is None:
        return
    beside = f"{result.perplexity / like.perplexity - 1:+.2%}"
    print(f"reference     {like.perplexity:.4f} ({visible(like.reference)}), {beside}")
    print(f"KL            {like.kl:.5f} nats per token, 99 % of tokens below {like.kl_99:.5f}")
    print(f"same first    {like.same_first:.2%}")
