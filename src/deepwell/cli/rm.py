"""`deepwell rm NAME`: remove a hub's model, or packed copies, from this disk; nothing outside of the two caches."""

from __future__ import annotations

import sys
from pathlib import Path

from deepwell.cli.list import amount, packed_copies
from deepwell.cli.terminal import visible
from deepwell.errors import ConfigError, DeepwellError
from deepwell.options import RmOptions
from deepwell.weights.hub.files import Reference, parse
from deepwell.weights.hub.kept import Kept, kept, remove
from deepwell.weights.hub.names import find, unknown_name
from deepwell.weights.hub.store import hub_cache


def run(options: RmOptions) -> int:
    return _packed(options) if options.packed else _hub(options)


def _hub(options: RmOptions) -> int:
    if options.model is None:
        raise ConfigError("rm needs a MODEL, or --packed: deepwell list shows what is here")
    cache = hub_cache()
    found = kept(cache)
    reference = _meant(options.model, found)
    going = [model for model in found if model.repo == reference.repo and _covers(reference, model)]
    if not _agreed([f"{model.name} ({model.kind}, {amount(model.size)})" for model in going], options.yes):
        return 1
    _tell(remove(cache, reference), "a server that uses it goes on with what it has mapped")
    return 0


def _meant(text: str, found: list[Kept]) -> Reference:
    """What of the cache a name means. ConfigError if that is not on this disk, with the names that are like it."""
    here = {model.name.lower(): model.name for model in found}
    known = find(text)
    for name in (text, known.place if known else ""):
        reference = parse(here.get(name.lower(), name))
        if reference is not None and any(model.repo == reference.repo for model in found):
            return reference
    if known is not None or Path(text).exists():
        what = f"{text} is not in {hub_cache()}" if known else f"{text} is a file or folder of your own"
        raise ConfigError(f"{what}; rm removes models that came from a hub: deepwell list shows them")
    raise unknown_name(text, *here.values())


def _covers(reference: Reference, model: Kept) -> bool:
    other = parse(model.name)
    if other is None or reference == Reference(reference.repo):
        return True
    return other.revision == reference.revision and (
        reference.file is None or other.file is None or reference.file.lower() in other.file.lower()
    )


def _packed(options: RmOptions) -> int:
    copies = packed_copies()
    going = [file for file in copies if options.model in (None, file.stem, file.name)]
    if not going and options.model is not None:
        raise ConfigError(
            f"{options.model!r} is no packed copy; deepwell list shows their names, and rm --packed removes all"
        )
    sizes = [file.stat().st_size for file in going]
    told = [f"{file.stem} ({amount(size)})" for file, size in zip(going, sizes, strict=True)]
    if going and not _agreed(told, options.yes):
        return 1
    for file in going:
        file.unlink(missing_ok=True)
    _tell(sum(sizes), "the next start packs anew")
    return 0


def _agreed(what: list[str], yes: bool) -> bool:
    """Asks on a terminal. DeepwellError where nobody can be asked."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise DeepwellError(f"rm asks on a terminal; elsewhere say --yes to remove {visible(', '.join(what))}")
    print("\n".join(f"  {visible(one)}" for one in what))
    try:
        return input("remove? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _tell(freed: int, note: str) -> None:
    print(f"freed {amount(freed)}; {note}" if freed else "nothing was here to remove")
