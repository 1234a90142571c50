"""Stand-ins for builds of llama.cpp and ik_llama.cpp: programs that check their flags and print recorded formats."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

_HEADER = "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |"
_RULE = "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|"

_BENCH = """
import json, sys
args = sys.argv[1:]
IK = {ik}
if "--help" in args:
    print("usage: llama-bench [options]" + (" -rtr, --run-time-repack <0|1>" if IK else " -d, --n-depth <n>"))
    sys.exit()
flags = {{}}
while args:
    name = args.pop(0)
    flags.setdefault(name, []).append("" if name == "--no-warmup" else args.pop(0))
log = open({log!r}, "a"); log.write(json.dumps(flags) + "\\n"); log.close()
open("llama.log", "w").write("written where it stands")
if not open(flags["-m"][0], "rb").read(4) == b"GGUF":
    print("gguf_init: invalid magic", "error: failed to load model", sep="\\n", file=sys.stderr); sys.exit(1)
tests = []
def test(prompt, gen, speed, **more):
    tests.append(dict(build_commit="abc", n_prompt=prompt, n_gen=gen, avg_ns=1, avg_ts=speed, **more))
prompts = [int(n) for n in flags["-p"][0].split(",")]
depths = [int(n) for n in flags.get("-d", ["0"])[0].split(",")]
gen = int(flags["-n"][0])
for depth in depths:
    for n in prompts:
        if n: test(n, 0, 100.0 + n, **({{"test": f"pp{{n}}"}} if IK else {{"n_depth": depth}}))
    if gen: test(0, gen, 20.0 - depth / 1000, **({{"test": f"tg{{gen}}"}} if IK else {{"n_depth": depth}}))
for pair in flags.get("-gp", []):
    n, m = map(int, pair.split(","))
    test(n, m, 15.0, test=f"tg{{m}}@pp{{n}}")
print(json.dumps(tests, indent=2))
"""

_BATCHED = """
import sys
args = sys.argv[1:]
out = sys.stderr if {ik} else sys.stdout
print("main: n_kv_max = 2048", "", {header!r}, {rule!r}, sep="\\n", file=out)
for b in args[args.index("-npl") + 1].split(","):
    speed = f"{{int(b) * 7.5:9.2f}}"
    print(f"|    64 |     64 |{{b:>5}} |   2048 |    8.766 |    58.41 |    3.240 |{{speed}} | 9.1 | 74.6 |", file=out)
print("", "llama_print_timings:        load time =    1887.99 ms", sep="\\n", file=out)
"""


def build(folder: Path, *, ik: bool = False) -> Path:
    """A folder of programs; llama-bench appends the flags of each run to `calls` in it, a JSON object a line."""
    folder.mkdir()
    _program(folder / "llama-bench", _BENCH.format(ik=ik, log=str(folder / "calls")))
    _program(folder / "llama-batched-bench", _BATCHED.format(ik=ik, header=_HEADER, rule=_RULE))
    return folder


def gguf(path: Path, architecture: str) -> Path:
    """The first bytes of a GGUF file."""
    key, value = b"general.architecture", architecture.encode()
    head = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key
    path.write_bytes(head + struct.pack("<IQ", 8, len(value)) + value)
    return path


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
