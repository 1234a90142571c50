"""What installing the serving core costs: bytes to download and bytes on disk.

`python benchmarks/install_size.py` prints a table, `--json` an object. It builds the wheel of this checkout, downloads
the wheels of everything it needs, installs them into an empty virtual environment, and subtracts what that environment
weighed before. Compiled .pyc files are counted apart: pip writes them at install, and they can be thrown away.
Needs a C++17 compiler and a package index. Goals: under 60 MB to download, under 200 MB on disk (1 MB = 10**6 bytes).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MB = 10**6


def measure(scratch: Path) -> dict[str, object]:
    """Sizes in bytes, and the five largest wheels."""
    environment = scratch / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    wheels = scratch / "wheels"
    own_build = f"--config-settings=build-dir={scratch / 'build'}"
    _pip(python, "wheel", "--no-deps", own_build, "--wheel-dir", str(wheels), str(ROOT))
    own = next(wheels.glob("deepwell-*.whl"))
    before, _ = _size(environment)
    _pip(python, "download", "--only-binary", ":all:", "--dest", str(wheels), str(own))
    _pip(python, "install", "--no-index", "--find-links", str(wheels), str(own))
    after, compiled = _size(environment)
    found = sorted(wheels.glob("*.whl"), key=lambda path: -path.stat().st_size)
    return {
        "wheels": len(found),
        "download_bytes": sum(path.stat().st_size for path in found),
        "installed_bytes": after - before,
        "of_which_compiled_bytes": compiled,
        "own_wheel_bytes": own.stat().st_size,
        "largest": {path.name.split("-")[0]: path.stat().st_size for path in found[:5]},
    }


def _pip(python: Path, *args: str) -> None:
    subprocess.run([str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *args], check=True)


def _size(folder: Path) -> tuple[int, int]:
    """Bytes of all files below `folder` outside pip and setuptools themselves, and how many of those are .pyc."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    own = [path for path in files if not {"pip", "setuptools", "pkg_resources"} & set(path.parts)]
    return sum(path.stat().st_size for path in own), sum(path.stat().st_size for path in own if path.suffix == ".pyc")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the download and installed size of the serving core.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as scratch:
        sizes = measure(Path(scratch))
    if as_json:
        print(json.dumps(sizes, indent=2))
        return
    print(f"python {sys.version.split()[0]}, {sizes['wheels']} wheels")
    for name in ("download_bytes", "installed_bytes", "of_which_compiled_bytes", "own_wheel_bytes"):
        print(f"{name.removesuffix('_bytes').replace('_', ' '):18}{int(str(sizes[name])) / MB:8.1f} MB")


if __name__ == "__main__":
    main()
