#!/usr/bin/env python
"""Fetch wheels of what this project needs, for a machine that has torch but no network.

    python tools/offline_wheels.py --out wheels --python 3.12                  # where there is a network
    pip install --no-index --no-deps wheels/*.whl && pip install --no-deps --no-build-isolation -e .    # on that machine
    python tools/doctor.py

Versions are those of constraints.txt, for x86-64 Linux; torch and what it brings stay out. Run it in the project's own
environment: what needs what is read from what is installed there. --have names a file with the packages that the other
machine has, such as its `pip list`: these stay out as well.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.errors import UserError, run_main

ROOT = Path(__file__).resolve().parents[1]
WITH_TORCH = re.compile(r"torch$|triton$|nvidia-|cuda-")  # what a machine with torch has in the build for its GPU
PLATFORMS = (*(f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)), "manylinux2014_x86_64")


def main() -> None:
    """Parse the flags, find what is needed, fetch it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write to; made if missing")
    add(
        "--python", default="{}.{}".format(*sys.version_info), metavar="VERSION", help="of the other machine (default: this)"
    )
    add("--have", type=Path, metavar="FILE", help="packages that the other machine has, one a line, versions optional")
    add("--also", nargs="*", default=[], metavar="NAME", help="more of what constraints.txt names, such as pytest")
    add("--dry-run", action="store_true", help="print what would be fetched, and fetch nothing")
    flags = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", flags.python):
        raise UserError(f"--python is {flags.python!r}: give a version such as 3.12")
    pins = pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"), flags.python)
    have = set() if flags.have is None else named(flags.have)
    wanted = sorted(needed({"megatron-ring", *map(canonicalize_name, flags.also)}, flags.python) - have)
    unknown = [name for name in wanted if name not in pins]
    if unknown:
        raise UserError(f"constraints.txt has no version of {', '.join(unknown)}")
    for name in wanted:
        print(f"{name}=={pins[name]}", flush=True)
        if not flags.dry_run:
            fetch(f"{name}=={pins[name]}", flags.python, flags.out)


def pinned(constraints: str, python: str) -> dict[str, str]:
    """Version of each package, on that Python."""
    found: dict[str, str] = {}
    for line in constraints.splitlines():
        if line.strip() and not line.startswith("#"):
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"python_version": python}):
                found[canonicalize_name(one.name)] = str(one.specifier).removeprefix("==")
    return found


def named(path: Path) -> set[str]:
    """The packages that a file names: of each line the first word, without its version."""
    if not path.is_file():
        raise UserError(f"--have {path}: no such file")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    words = (re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line) for line in lines)
    return {canonicalize_name(word.group()) for word in words if word}


def needed(roots: Iterable[str], python: str) -> set[str]:
    """The roots' and all that these need on that Python, the project itself and torch with its own apart.

    Raises:
        UserError: one of them is not installed here, so that nothing tells what it needs.
    """
    found: set[str] = set()
    open_ones = list(roots)
    while open_ones:
        name = open_ones.pop()
        if name in found or WITH_TORCH.match(name):
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            raise UserError(f"{name} is not installed here: run this in the project's own environment (make venv)") from None
        for line in lines:
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"python_version": python, "extra": ""}):
                open_ones.append(canonicalize_name(one.name))
    return found - {"megatron-ring"}


def fetch(pin: str, python: str, out: Path) -> None:
    """A wheel of `pin`; where only its sources are published, and are plain Python, one is built of them."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    where = ["--python-version", python, "--implementation", "cp", *(f"--platform={name}" for name in PLATFORMS)]
    done = subprocess.run([*pip, "download", "--no-deps", "--only-binary=:all:", *where, "--dest", str(out), pin],
                          stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
    if done.returncode == 0:
        return
    built = subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(out), pin], stderr=subprocess.PIPE, text=True,
                           check=False)  # fmt: skip
    name = re.sub(r"[-_.]+", "_", pin.split("==")[0]).lower()
    if built.returncode or not any(path.name.lower().startswith(name) for path in out.glob("*-none-any.whl")):
        raise UserError(f"{pin}: no wheel for Python {python}: {(done.stderr or built.stderr).strip().splitlines()[-1]}")


if __name__ == "__main__":
    run_main(main)
