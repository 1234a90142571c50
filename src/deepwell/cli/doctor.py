"""`deepwell doctor`: what Deepwell finds on this machine, what is missing, and what would be faster."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import msgspec

from deepwell import __version__
from deepwell.bench.limits import Limits, Rate, measure_limits
from deepwell.cli.commands import GROUPS
from deepwell.cli.extras import install, reinstall
from deepwell.cli.parser import CONFIG_ENV
from deepwell.cli.waiting import Wait
from deepwell.loading.machine import Machine, default_threads, inspect_machine
from deepwell.options import DoctorOptions
from deepwell.settings import DEFAULT_CONFIG, ENV_PREFIX, options_of

_EXTRAS = ("train",)
"""Those that a command of this version uses."""
_ISA_ENV = ENV_PREFIX + "ISA"
_MIN_MEMORY = 512 * 2**20


class Native(msgspec.Struct, frozen=True):
    """The C++ backend: the instruction set that will run, those this machine could run, or why it does not load."""

    isa: str | None
    available_isas: list[str]
    error: str | None = None


class Extra(msgspec.Struct, frozen=True):
    """Packages of an extra that are not installed, and the command that installs them."""

    missing: list[str]
    install: str


class Report(msgspec.Struct, frozen=True):
    """`settings` are the DEEPWELL_* variables in force, `ignored_settings` those that no command knows."""

    deepwell: str
    python: str
    platform: str
    machine: Machine
    threads: int
    native: Native
    torch: str | None
    embedded_model: str | None
    config_file: str | None
    settings: dict[str, str]
    ignored_settings: list[str]
    extras: dict[str, Extra]
    advice: list[str]
    limits: Limits | None = None


def run(options: DoctorOptions) -> int:
    report = examine(os.environ)
    if options.limits and report.native.isa:
        with Wait("measuring memory and arithmetic"):
            report = msgspec.structs.replace(report, limits=measure_limits(report.threads))
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        _show(report)
    return 0 if report.native.isa and report.embedded_model else 1


def examine(environ: Mapping[str, str]) -> Report:
    """Look at everything; loads the native backend, but no model and no torch."""
    machine = inspect_machine()
    native = _native()
    extras = {name: _extra(name) for name in _EXTRAS}
    known = {
        option.env for command, group in GROUPS.items() for option in options_of(command, group) if not option.once
    }
    known |= {CONFIG_ENV, _ISA_ENV}
    set_here = {name: value for name, value in sorted(environ.items()) if name.startswith(ENV_PREFIX)}
    config = Path(environ.get(CONFIG_ENV) or DEFAULT_CONFIG)
    embedded = _embedded_model()
    return Report(
        deepwell=__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        platform=platform.platform(),
        machine=machine,
        threads=default_threads(machine),
        native=native,
        torch=_version("torch"),
        embedded_model=str(embedded) if embedded else None,
        config_file=str(config.resolve()) if config.is_file() else None,
        settings={name: value for name, value in set_here.items() if name in known},
        ignored_settings=[name for name in set_here if name not in known],
        extras=extras,
        advice=list(_advice(machine, native, embedded)),
    )


def _native() -> Native:
    try:
        from deepwell import _native as module
    except ImportError as error:
        return Native(None, [], str(error))
    available = list(module.available_isas())
    try:
        return Native(module.isa(), available)
    except ValueError as error:
        return Native(None, available, f"{_ISA_ENV}: {error}")


def _embedded_model() -> Path | None:
    from deepwell.weights import embedded_path

    path = embedded_path()
    return path if (path / "config.json").is_file() else None


def _extra(name: str) -> Extra:
    of_extra = re.compile(rf"extra\s*==\s*['\"]{name}['\"]")
    try:
        required = [line for line in metadata.requires("deepwell") or [] if of_extra.search(line)]
    except metadata.PackageNotFoundError:  # run from its sources
        return Extra([], install(name))
    packages = [match[0] for line in required if (match := re.match(r"[\w.-]+", line))]
    return Extra([package for package in packages if _version(package) is None], install(name))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _advice(machine: Machine, native: Native, embedded: Path | None) -> Iterator[str]:
    if native.error and native.available_isas:
        yield f"{native.error}; unset it or set one of these."
    elif native.error:
        yield (
            "The native backend does not load, so nothing can be served. Reinstall with a C++17 compiler present "
            f"(Debian: apt-get install g++): {reinstall()}"
        )
    if embedded is None:
        yield "The embedded model is missing: commands need a MODEL argument. Reinstalling deepwell brings it back."
    if native.isa == "scalar":
        yield "No vector instructions of this processor are used; one with AVX2, AVX-512 or NEON is many times faster."
    if native.isa == "avx2":
        yield "AVX2 is in use; a processor with AVX-512 computes prompts faster."
    if native.isa and native.available_isas and native.isa != native.available_isas[0]:
        yield f"{_ISA_ENV} holds {native.isa} although {native.available_isas[0]} is available and faster: unset it."
    if machine.cpu_limit is not None and machine.cpu_limit < machine.usable_cores:
        yield f"The container may use {machine.cpu_limit:g} of {machine.usable_cores} cores; more would be faster."
    limits = machine.memory_available, machine.memory_limit, machine.address_limit
    available = min((n for n in limits if n is not None), default=2**63)
    if available < _MIN_MEMORY:
        yield f"Only {available / 2**20:.0f} MiB of memory are free; models and their caches need more."
    if Path("/proc/driver/nvidia/version").exists():
        yield "An NVIDIA GPU is present; this version serves on the processor and can train on the GPU."


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(report):
        table.add_row(name, value)
    console = Console(highlight=False, markup=False)
    console.print(table)
    wanting = [f"For extra {name}: {extra.install}" for name, extra in report.extras.items() if extra.missing]
    for line in (*report.advice, *wanting):
        console.print(f"\n! {line}", soft_wrap=True)  # a command is copied whole


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    machine, native = report.machine, report.native
    yield "deepwell", report.deepwell
    yield "python", report.python
    yield "platform", report.platform
    yield "processor", f"{machine.cpu} ({machine.architecture})"
    limit = f", container limit {machine.cpu_limit:g}" if machine.cpu_limit is not None else ""
    yield "cores", f"{machine.usable_cores} usable of {machine.cores}{limit}; {report.threads} threads by default"
    yield (
        "memory",
        f"{_gib(machine.memory_available)} free of {_gib(machine.memory)}, container limit "
        + (_gib(machine.memory_limit) if machine.memory_limit else "none")
        + (f", ulimit -v {_gib(machine.address_limit)}" if machine.address_limit else ""),
    )
    yield (
        "native",
        f"{native.isa} (available: {', '.join(native.available_isas)})" if native.isa else f"missing: {native.error}",
    )
    yield "torch", report.torch or "not installed (serving does not need it)"
    yield "embedded model", report.embedded_model or "missing"
    yield "config file", report.config_file or f"none ({DEFAULT_CONFIG} in the current folder, or {CONFIG_ENV})"
    if report.limits:
        yield from _limit_rows(report.limits)
    for name, value in report.settings.items():
        yield name, value
    for name in report.ignored_settings:
        yield name, "ignored: no command has this option"
    for name, extra in report.extras.items():
        yield f"extra {name}", f"missing {', '.join(extra.missing)}" if extra.missing else "installed"


def _limit_rows(limits: Limits) -> Iterator[tuple[str, str]]:
    def line(rate: Rate | None, unit: str) -> str:
        if rate is None:
            return "no such instruction"
        return f"{rate.best / 1e9:,.1f} {unit} at best, {rate.median / 1e9:,.1f} median ({rate.what})"

    yield "memory reads", line(limits.read, "GB/s") + f", {limits.threads} threads"
    yield "8-bit peak", line(limits.int8, "GOPS")
    yield "bfloat16 peak", line(limits.bf16, "GFLOPS")
    yield "float32 peak", line(limits.fma, "GFLOPS")


def _gib(size: int | None) -> str:
    return f"{size / 2**30:.1f} GiB" if size is not None else "unknown"
