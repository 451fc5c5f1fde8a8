"""Builds the sections of docs/extending.md in a copy of the package.

A block of code belongs to the file whose path, in backticks, begins the paragraph above it. A `python` block is the whole
of a new file. A `diff` block adds the lines that start with `+` to lines that are there; `…` stands between places.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"^`(?P<file>[\w./-]+)`[^\n]*\n\n```(?P<kind>python|diff)\n(?P<text>.*?)^```$", re.M | re.S)


def copy_of_the_package(folder: Path) -> Path:
    """The package and its tools, to change and to run; the folder itself."""
    for name in ("megatron_ring", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def section_of(title: str) -> str:
    """The text under `## title`."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    assert rest, f"docs/extending.md has no section {title!r}"
    return rest.split("\n## ")[0]


def apply(title: str, root: Path) -> set[str]:
    """Do in `root` what a section says; the files that it touches."""
    touched = set()
    for file, kind, text in blocks(section_of(title)):
        path = root / file
        if kind == "python":
            assert not path.exists(), f"{file} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        else:
            path.write_text(patched(path.read_text(encoding="utf-8"), text, file), encoding="utf-8")
        touched.add(file)
    return touched


def blocks(section: str) -> Iterator[tuple[str, str, str]]:
    """File, kind and text of each block. Every block of these kinds has a file."""
    found = [(match["file"], match["kind"], match["text"]) for match in BLOCK.finditer(section)]
    assert len(found) == len(re.findall(r"^```(?:python|diff)$", section, re.M)), "a block without a file above it"
    return iter(found)


def patched(source: str, diff: str, file: str) -> str:
    """`source` with the added lines of a diff block in it."""
    for part in diff.split("…\n"):
        lines = part.splitlines()
        assert lines and all(line[:1] in " +" for line in lines), f"{file}: {part}"
        old = "".join(f"{line[1:]}\n" for line in lines if line[0] == " ")
        assert source.count(old) == 1, f"{file}: the lines to go by are there {source.count(old)} times:\n{old}"
        source = source.replace(old, "".join(f"{line[1:]}\n" for line in lines))
    return source
