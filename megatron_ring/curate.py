"""Curate raw data by a recipe: `python -m megatron_ring.curate RECIPE.yaml`. docs/curation.md is its tutorial."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from megatron_ring.config.cli import parse
from megatron_ring.errors import UserError, run_main


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """One curation. The same command goes on where a killed one stopped, and does again only what has changed."""

    recipe: Annotated[Path, tyro.conf.Positional]
    """YAML file with `sources` and `steps`."""
    out: Path | None = None
    """Folder for kept.jsonl, dropped.jsonl, ledger.jsonl, report.html and what a later run goes on from (default: beside the
    recipe, by its name)."""
    processes: int = min(8, os.cpu_count() or 1)
    """Processes that work side by side."""
    dry_run: bool = False
    """Check the recipe and its files, say what would be done, and end."""


def main(config: CurateConfig) -> None:
    """Run a recipe. Raises `UserError`."""
    from megatron_ring.curation.pipeline import run_recipe
    from megatron_ring.curation.recipe import read_recipe

    if config.processes < 1:
        raise UserError(f"--processes is {config.processes}: give 1 at least")
    recipe = read_recipe(config.recipe)
    out = config.out or config.recipe.with_suffix("")
    if out == config.recipe:
        raise UserError(f"--out: {config.recipe} has no suffix to leave out: give a folder")
    for source in recipe.sources:
        print(f"source {source.name}: {len(source.files)} file{'s' if len(source.files) > 1 else ''}", flush=True)
    if config.dry_run:
        print(f"steps: {', '.join(['read', *(step.name for step in recipe.steps)])}; results would be in {out}")
        return
    steps = run_recipe(recipe, out, config.processes, lambda text: print(text, flush=True))
    read, kept = steps[0].tally.read.total(), steps[-1].tally.kept.total()
    print(
        f"{kept:,} of {read:,} rows stay: {out / 'kept.jsonl'}; why the others went: {out / 'ledger.jsonl'}, "
        f"{out / 'report.html'}"
    )


def cli() -> None:
    """The command line."""
    run_main(
        lambda: main(parse(CurateConfig, "ring-curate", "Curate raw data by a recipe; docs/curation.md is a tutorial."))
    )


if __name__ == "__main__":
    cli()
