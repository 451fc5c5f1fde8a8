#!/usr/bin/env python
"""After how many steps runs of SFT come to a loss: what a base model saves.

    python tools/steps_to_loss.py runs/from-base runs/from-random

Prints one JSON object. The loss of every run is its validation loss, which is measured at the end of each epoch; between two
ends it is taken as a straight line.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro

from megatron_ring.analysis.read_run import epoch_checkpoints, read_run
from megatron_ring.errors import UserError, run_main


@dataclass(frozen=True)
class Flags:
    """Steps to a validation loss, run by run."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories of SFT."""
    loss: float | None = None
    """The loss (nats per token; default: the lowest validation loss of the last run)."""


def main(flags: Flags) -> None:
    """Read the runs and print how soon each is there."""
    curves = {path: validations(path) for path in flags.runs}
    if not curves:
        raise UserError("give at least one run directory of SFT")
    target = min(loss for _, loss in curves[flags.runs[-1]]) if flags.loss is None else flags.loss
    found = {
        str(path): {"steps": steps_to(curve, target), "lowest": min(loss for _, loss in curve), "validation": curve}
        for path, curve in curves.items()
    }
    print(json.dumps({"loss": target, "runs": found}))


def validations(path: Path) -> list[tuple[int, float]]:
    """Steps and validation losses of a run's epochs."""
    curve = [(epoch.step, epoch.loss) for epoch in epoch_checkpoints(read_run(path)) if math.isfinite(epoch.loss)]
    if not curve:
        raise UserError(f"{path}: has measured no validation loss; give the run --data.validation")
    return curve


def steps_to(curve: list[tuple[int, float]], target: float) -> int | None:
    """The first step at which the line through the losses is at `target` or below; None where it never is."""
    if curve[0][1] <= target:
        return curve[0][0]
    for (before, high), (after, low) in pairwise(curve):
        if low <= target:
            return math.ceil(before + (after - before) * (high - target) / (high - low))
    return None


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Flags, description=__doc__)))
