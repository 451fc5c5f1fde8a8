"""Holds the import rules of the rooms by reading every module's syntax tree; nothing is imported.

`CLOSED` and `FORBIDDEN` say per room what it may not name; `LEVELS` is the direction of dependencies: a module imports
its own level or below, and no two rooms import each other. A file at the top of the package that is not in `LIGHT` is a
main. The checker itself is tested on small trees that break each rule.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "megatron_ring"
LIGHT = ("config", "errors", "garbage", "lifetime")
HEAVY = ("torch", "megatron", "transformers")
DEVICE = ("torch.distributed", "torch.cuda", "megatron.core.parallel_state", "megatron.core.mpu")
# Room → the only rooms and top-level modules of the package that it may import besides itself.
CLOSED = {
    "algorithm": {"errors"},
    "rewards": {"errors", "lifetime"},
    "analysis": {"errors"},
    "benchmarks": {"errors", "rewards"},
    "judging": {"data", "errors"},
    "toy": {"errors"},
    "curation": {"analysis", "config", "data", "errors", "judging", "lifetime", "rewards", "run"},
    "config": {"algorithm", "errors"},  # what objectives declare of themselves, which loads no torch
}
# Room → outside modules that it may not import at all.
FORBIDDEN = {
    "algorithm": ("megatron", "torch.distributed"),
    "rewards": ("megatron", "torch"),
    "analysis": ("megatron", "torch"),
    "benchmarks": ("megatron", "torch"),
    "judging": ("megatron", "torch"),
    "curation": ("megatron", "torch"),
    "toy": ("megatron", "torch"),
    "data": ("megatron",),
    **dict.fromkeys(LIGHT, HEAVY),
}
LEVELS = {
    **dict.fromkeys((*LIGHT, "algorithm"), 0),
    "parallel": 1,
    "model": 2,
    "checkpoint": 3,
    **dict.fromkeys(("training", "sampler", "rewards", "data", "corpus", "toy", "analysis", "planning"), 4),
    **dict.fromkeys(("run", "rollout", "reward_models", "benchmarks", "curation", "serving", "judging"), 5),
}
MAIN_LEVEL = 6
# Assembled, so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:(?:wo" + "rk|ro" + r"ot)/|tm" + r"p/v(?!\w))")


@dataclass(frozen=True)
class Use:
    """A module named in a file: by import, or as an attribute (`torch.cuda.…`). `at_import`: it runs on import."""

    name: str
    line: int
    at_import: bool


@dataclass(frozen=True)
class Module:
    name: str
    file: Path
    room: str
    uses: tuple[Use, ...]


def read_modules(root: Path) -> dict[str, Module]:
    """Every module of the package by dotted name. A top-level file is a room of its own."""
    modules = {}
    for file in sorted((root / PACKAGE).rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        is_package = parts[-1] == "__init__"
        in_room = parts[1] in LIGHT or len(parts) > 2
        room = parts[1] if in_room else f"{parts[-1]}.py"
        uses = tuple(_uses(ast.parse(file.read_text(encoding="utf-8"), str(file)), name, is_package))
        # A file beside a package of its name keeps an entry of its own; Python would never import it.
        modules[name if name not in modules else f"{name}.py"] = Module(name, file.relative_to(root), room, uses)
    return modules


def _uses(tree: ast.Module, module: str, is_package: bool) -> Iterator[Use]:
    aliases: dict[str, str] = {}

    def imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else alias.name.split(".")[0]
                yield alias.name
            return
        base = node.module or ""
        if node.level:
            parents = module.split(".")
            keep = len(parents) - node.level + (1 if is_package else 0)
            base = ".".join([*parents[:keep], *([base] if base else [])])
        for alias in node.names:
            aliases[alias.asname or alias.name] = f"{base}.{alias.name}"
            yield f"{base}.{alias.name}"

    def visit(node: ast.AST, at_import: bool) -> Iterator[Use]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported(node):
                yield Use(name, node.lineno, at_import)
            return
        if isinstance(node, ast.Attribute) and (dotted := _dotted(node)):
            first, _, rest = dotted.partition(".")
            if first in aliases:
                yield Use(f"{aliases[first]}.{rest}", node.lineno, at_import)
            return
        if isinstance(node, ast.If) and _dotted(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, False)
            for child in node.orelse:
                yield from visit(child, at_import)
            return
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import and not deferred)

    yield from visit(tree, True)


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def target_room(name: str, modules: dict[str, Module]) -> str | None:
    """The room of the package that a dotted name belongs to; None outside the package or for the package itself."""
    parts = name.split(".")
    if parts[0] != PACKAGE or len(parts) < 2:
        return None
    rooms = {module.room for module in modules.values()}
    return next((room for room in (parts[1], f"{parts[1]}.py") if room in rooms), None)


def level(room: str) -> int:
    return LEVELS.get(room, MAIN_LEVEL)


def violations(root: Path) -> list[str]:
    """Every breach of the rules as `file:line: what`; empty when all hold."""
    modules = read_modules(root)
    found, edges = [], {}
    for module in modules.values():
        for use in module.uses:
            where = f"{module.file}:{use.line}: {module.room} "
            found += [f"{where}may not use {use.name}" for name in FORBIDDEN.get(module.room, ()) if within(use.name, name)]
            format_only = within(use.name, "torch.distributed.checkpoint")  # a file format, no process groups
            if module.room != "parallel" and not format_only and any(within(use.name, name) for name in DEVICE):
                found.append(f"{where}uses {use.name}; only parallel/ may")
            room = target_room(use.name, modules)
            if room is None or room == module.room:
                continue
            edges.setdefault((module.room, room), where)
            if module.room in CLOSED and room not in CLOSED[module.room]:
                found.append(f"{where}may not import {room}")
            if level(room) > level(module.room):
                found.append(f"{where}imports {room}, which lies above it")
    mutual = [(room, other) for room, other in edges if room < other and (other, room) in edges]
    found += [f"{edges[pair]}and {pair[1]} import each other" for pair in mutual]
    for module in modules.values():
        if (root / module.file).with_suffix("").is_dir() and module.file.name != "__init__.py":
            found.append(f"{module.file}: hidden by the package of the same name")
    found += [f"{chain}: loads {heavy} on import" for chain, heavy in heavy_imports(modules)]
    return sorted(set(found))


def heavy_imports(modules: dict[str, Module]) -> Iterator[tuple[str, str]]:
    """Chains of module-level imports from a light module or main to torch, megatron or transformers."""
    for start, module in modules.items():
        if module.room not in LIGHT and not module.room.endswith(".py"):
            continue
        parents = [start.rsplit(".", n)[0] for n in range(1, start.count(".") + 1)]  # `-m a.b` runs a first
        queue, seen = [(name, (name,)) for name in (start, *parents)], {start, *parents}
        while queue:
            name, chain = queue.pop(0)
            for use in modules[name].uses if name in modules else ():
                if not use.at_import:
                    continue
                heavy = next((heavy for heavy in HEAVY if within(use.name, heavy)), None)
                if heavy:
                    yield " → ".join(chain), heavy
                for length in range(2, use.name.count(".") + 2):  # importing a.b.c runs a and a.b too
                    prefix = ".".join(use.name.split(".")[:length])
                    if prefix in modules and prefix not in seen:
                        seen.add(prefix)
                        queue.append((prefix, (*chain, prefix)))


def machine_paths(text: str) -> list[int]:
    """Numbers of the lines that hold an absolute path of one machine."""
    return [number for number, line in enumerate(text.splitlines(), start=1) if MACHINE_PATH.search(line)]


def test_the_package_keeps_the_rules() -> None:
    assert violations(ROOT) == []


def test_no_tracked_file_names_a_machine_path() -> None:
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listing.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            text = (ROOT / name).read_bytes().decode("utf-8", errors="replace")
            found += [f"{name}:{line}" for line in machine_paths(text)]
    assert found == []


BROKEN = {
    "a closed room imports another room": (
        "algorithm/loss.py",
        "from megatron_ring.model import spec",
        "algorithm may not import model",
    ),
    "a relative import hides nothing": ("algorithm/loss.py", "from ..model import spec", "algorithm may not import model"),
    "the algorithm with process groups": (
        "algorithm/loss.py",
        "from torch import distributed as dist",
        "algorithm may not use torch.distributed",
    ),
    "rewards with torch": ("rewards/math.py", "def f():\n    import torch", "rewards may not use torch"),
    "for types only": ("analysis/a.py", "if TYPE_CHECKING:\n    import torch", "analysis may not use torch"),
    "data with megatron": ("data/pack.py", "import megatron.core", "data may not use megatron.core"),
    "device outside parallel": ("model/spec.py", "import torch as t\nt.cuda.synchronize()", "only parallel/ may"),
    "parallel_state outside parallel": (
        "training/s.py",
        "from megatron.core import parallel_state",
        "only parallel/ may",
    ),
    "upwards": (
        "model/spec.py",
        "from megatron_ring.training import step",
        "model imports training, which lies above it",
    ),
    "into a main": ("training/s.py", "import megatron_ring.sft", "training imports sft.py, which lies above it"),
    "each other": ("data/pack.py", "import megatron_ring.training.step", "data and training import each other"),
    "config with torch": ("config/model.py", "def f():\n    import torch", "config may not use torch"),
    "main loads torch": (
        "sft.py",
        "from megatron_ring.training.step import go",
        "megatron_ring.training.step: loads torch",
    ),
    "a main hidden by a room": ("training.py", "", "training.py: hidden by the package"),
    "training imports what it is called from": (
        "training/s.py",
        "import megatron_ring.rollout.collect",
        "training imports rollout, which lies above it",
    ),
    "package of a module loads torch": ("sft.py", "from megatron_ring.heavy import light", "loads torch on import"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_checker_sees(case: str, tmp_path: Path) -> None:
    sound = {
        "__init__.py": "",
        "config/__init__.py": "",
        "config/model.py": "from dataclasses import dataclass",
        "sft.py": "def cli():\n    import torch\n    from megatron_ring.training import step",
        "rollout/__init__.py": "",
        "rollout/collect.py": "from megatron_ring.training import step",
        "algorithm/__init__.py": "",
        "algorithm/loss.py": "import torch\nfrom megatron_ring.errors import UserError",
        "errors.py": "",
        "model/__init__.py": "",
        "model/spec.py": "from megatron_ring.parallel import groups",
        "parallel/__init__.py": "",
        "parallel/groups.py": "import torch.distributed as dist\nimport torch\ntorch.cuda.synchronize()",
        "training/__init__.py": "",
        "training/step.py": "import torch\nfrom megatron_ring.data import pack\nfrom megatron_ring.model import spec",
        "data/__init__.py": "",
        "data/pack.py": "import torch",
        "heavy/__init__.py": "import torch",
        "heavy/light.py": "",
    }
    file, source, expected = BROKEN[case]
    write_tree(tmp_path / "sound", sound)
    write_tree(tmp_path / "broken", {**sound, file: source})
    assert violations(tmp_path / "sound") == []
    found = violations(tmp_path / "broken")
    assert any(expected in line for line in found), found


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


def test_machine_paths_are_seen() -> None:
    bad = ["cd /wo" + "rk/main", "x = '/ro" + "ot/data'", "/tm" + "p/v/e/bin/python"]
    good = ["a/wo" + "rk/b", "$HOME/wo" + "rk/", "/wo" + "rking/", "/tm" + "p/values", "https://host/ro" + "ot/"]
    assert machine_paths("\n".join([*bad, *good])) == [1, 2, 3]
