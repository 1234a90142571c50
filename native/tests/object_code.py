"""Looks at the machine code of the kernels: `python native/tests/object_code.py FOLDER`, FOLDER holding kernels_*.o.

Two things no test of results can see. Functions of one instruction set must carry its name: one that all sets share
would be kept once by the linker, perhaps compiled for a processor that is not there. And the loops over codes must keep
their accumulators in registers: a vector stored to the stack between two products of a loop means that the compiler
ran out of registers, and costs more than the product."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class InstructionSet(NamedTuple):
    product: str
    """The instruction that multiplies codes."""
    spilled: float
    """Vectors that may be stored to the stack per product: the more registers, the fewer."""
    objdump: str = "objdump"


SETS = {
    "avx512_bf16": InstructionSet("vpdpbusd", 1 / 16),
    "avx512_vnni": InstructionSet("vpdpbusd", 1 / 16),
    "avx512": InstructionSet("vpmaddubsw", 1 / 2),
    "avx2": InstructionSet("vpmaddubsw", 1 / 2),
    "neon": InstructionSet("smull2", 1 / 2, "aarch64-linux-gnu-objdump"),
    "neon_dot": InstructionSet("sdot", 1 / 4, "aarch64-linux-gnu-objdump"),
}

HOT = ("multiply", "direct")
"""Function templates that hold the loops over codes."""

CHAIN = 8
"""Products in a straight run of code from which on it is taken for a loop's body."""

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t(\S+)\s*([^<]*)")
JUMP = re.compile(r"^(j\w+|b|b\.\w+|cbn?z|tbn?z|ret)$")
TARGET = re.compile(r"\b([0-9a-f]+)$")
STORE = re.compile(r"^vmov\w* %[xyz]mm\d+,.*\(%r[sb]p[,)]|^st[rp] (q\d+, )+\[sp")

Instruction = tuple[int, str, str]
"""Address, mnemonic, operands."""


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def functions(disassembly: str) -> Iterator[tuple[str, list[Instruction]]]:
    name, body = "", list[Instruction]()
    for line in disassembly.splitlines():
        if start := FUNCTION.match(line):
            if name:
                yield name, body
            name, body = start[1], []
        elif found := INSTRUCTION.match(line):
            body.append((int(found[1], 16), found[2], found[3].strip()))
    if name:
        yield name, body


def straight_runs(body: list[Instruction]) -> Iterator[list[Instruction]]:
    """The function cut at jumps and where jumps lead to."""
    jumps = [operands for _, name, operands in body if JUMP.match(name)]
    targets = {int(found[1], 16) for operands in jumps if (found := TARGET.search(operands))}
    run: list[Instruction] = []
    for instruction in body:
        if instruction[0] in targets and run:
            yield run
            run = []
        run.append(instruction)
        if JUMP.match(instruction[1]):
            yield run
            run = []
    yield run


def spills(run: list[Instruction], isa: InstructionSet) -> str:
    """What a run stores to the stack between its first and last product, if that is too much; else nothing."""
    at = [i for i, (_, name, _) in enumerate(run) if name == isa.product]
    if len(at) < CHAIN:
        return ""
    stored = sum(bool(STORE.match(f"{name} {operands}")) for _, name, operands in run[at[0] : at[-1]])
    if stored <= isa.spilled * len(at):
        return ""
    return f"{stored} vectors are stored to the stack among {len(at)} products"


def spilling(objects: Path, isa: InstructionSet, hot: Iterable[tuple[str, list[Instruction]]]) -> Iterator[str]:
    for name, body in hot:
        for fault in filter(None, (spills(run, isa) for run in straight_runs(body))):
            yield f"{objects.name}: {fault} of {name}"


def strangers(objects: Path, name: str) -> Iterator[str]:
    """Functions that the linker may replace by another instruction set's."""
    for line in tool("nm", "-C", "--defined-only", str(objects)).splitlines():
        if line[17] in "TWVu" and f"deepwell::{name}::" not in line:
            yield f"{objects.name}: {line[19:]} is compiled for {name}, but its name is not {name}'s own"


def faults_of(objects: Path, name: str) -> Iterator[str]:
    isa = SETS[name]
    disassembly = tool(isa.objdump, "-d", "-C", "--no-show-raw-insn", str(objects))
    prefixes = tuple(f"deepwell::{name}::{hot}<" for hot in HOT)
    hot = [(title, body) for title, body in functions(disassembly) if any(p in title for p in prefixes)]
    for prefix in prefixes:
        if not any(prefix in title and any(i[1] == isa.product for i in body) for title, body in hot):
            yield f"{objects.name}: no function named {prefix}...> has the instruction {isa.product}"
    yield from spilling(objects, isa, hot)
    yield from strangers(objects, name)


def main(folder: Path) -> int:
    files = {name: path for name in SETS for path in folder.glob(f"kernels_{name}.*o")}
    faults = [fault for name, path in files.items() for fault in faults_of(path, name)]
    if not files:
        faults.append(f"{folder} holds no objects of the kernels of {', '.join(SETS)}")
    print(f"object code of {', '.join(files)}: {len(faults)} faults")
    print("\n".join(faults), end="\n" if faults else "", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
