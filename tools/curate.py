"""One step of a curation over files: tools/curate.py STEP --input FILES --out DIR [--set OPTION=VALUE …] [--check].

STEP is read, clean, solutions, exact, near, decontaminate, annotate, judge_subject, responses, verify or per_problem.
docs/curation.md has their options. A recipe (`python -m megatron_ring.curate`) does several, one after another. `--check`
writes no rows: it says what the step would drop from a set that exists, and ends with status 1 where that is anything.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.cli import parse
from megatron_ring.curation.options import Options
from megatron_ring.curation.recipe import Recipe, Source, find_files, make_step, read_value
from megatron_ring.errors import UserError, run_main


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """One step of a curation."""

    step: Annotated[
        Literal[
            "read",
            "clean",
            "solutions",
            "exact",
            "near",
            "decontaminate",
            "annotate",
            "judge_subject",
            "responses",
            "verify",
            "per_problem",
        ],
        tyro.conf.Positional,
    ]
    """What to do."""
    input: tuple[str, ...]
    """Files of rows, or patterns in quotes: our prompt files or public ones, JSONL, JSON or parquet."""
    out: Path
    """Folder for kept.jsonl, dropped.jsonl, ledger.jsonl and report.html."""
    set: tuple[str, ...] = ()
    """Options of the step, OPTION=VALUE each, as in `threshold=0.7 off=[link,image]`."""
    benchmarks: tuple[str, ...] = ()
    """Benchmark files of `decontaminate`."""
    fields: tuple[str, ...] = ()
    """Columns by what they hold, NAME=COLUMN each, as in `prompt=question answer=final`."""
    domain: str | None = None
    """Domain of rows that name none."""
    response: str | None = None
    """Column with a teacher's responses, one or several a row."""
    processes: int = min(8, os.cpu_count() or 1)
    """Processes that work side by side."""
    check: bool = False
    """Only say what would be dropped: no kept.jsonl and dropped.jsonl; status 1 where there is anything."""


def recipe_of(options: StepOptions) -> Recipe:
    """The recipe with this one step. Raises `UserError` that names the flag."""
    files = tuple(path for pattern in options.input for path in find_files(pattern, Path(), "--input"))
    fields = dict(_pair(pair, "--fields") for pair in options.fields)
    unknown = next(
        (name for name in fields if name not in ("id", "domain", "prompt", "answer", "metadata", "solution")), None
    )
    if unknown is not None:
        raise UserError(f"--fields {unknown}: use id, domain, prompt, answer, metadata or solution")
    source = Source(files[0].name.split(".")[0] or "rows", files, fields, options.domain, response=options.response)
    if options.step == "read":
        return Recipe((source,), ())
    given: dict[str, Any] = {
        name: read_value(value, "--set") for name, value in (_pair(pair, "--set") for pair in options.set)
    }
    if options.benchmarks:
        given["benchmarks"] = list(options.benchmarks)
    step: Options = make_step(options.step, given, f"--set: {options.step}", Path())
    return Recipe((source,), (step,))


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise UserError(f"{flag} {text}: give NAME=VALUE")
    return name, value


def main() -> None:
    """Command line."""
    from megatron_ring.curation.pipeline import run_recipe

    options = parse(StepOptions, "tools/curate.py", __doc__ or "")
    if options.processes < 1:
        raise UserError(f"--processes is {options.processes}: give 1 at least")
    steps = run_recipe(recipe_of(options), options.out, options.processes, lambda text: print(text, flush=True))
    dropped = steps[-1].tally.reasons()
    if not options.check:
        print(f"rows that stay: {options.out / 'kept.jsonl'}; why others went: {options.out / 'ledger.jsonl'}")
        return
    for name in ("kept.jsonl", "dropped.jsonl"):
        (options.out / name).unlink()
    print(
        json.dumps(
            {"rows": steps[-1].tally.read.total(), "found": dropped.total(), "by_reason": dict(sorted(dropped.items()))}
        )
    )
    if dropped:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
