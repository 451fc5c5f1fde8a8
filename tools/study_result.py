#!/usr/bin/env python
"""Write the result of one start of the study of SFT epochs: what its page needs of the runs, in one small file.

    python tools/study_result.py --seed 1 --epochs 4 --sft runs/sft --rl runs/rl --before runs/before \\
        --out runs/study/results/seed-1-epochs-4.json

`tools/study.py epochs` runs this for each start. On other machines it gathers runs that were started otherwise.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_ring.analysis.study_starts import start_of_runs, write_start
from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.errors import run_main


@dataclass(frozen=True)
class Flags:
    """One start: an SFT run, an evaluation of the start, and the RL run from it."""

    seed: int
    """Seed of the start."""
    epochs: int
    """Epochs of SFT behind the start."""
    sft: Path
    """Run directory of SFT, with validation."""
    rl: Path
    """Run directory of RL, with held-out evaluations."""
    before: Path
    """Folder of the evaluation of the start, on the same held-out problems."""
    out: Path
    """File to write; in the folder `results` of a study."""
    steps: int | None = None
    """Take the first so many steps of RL alone, of a run that was cut short (default: all). The last of them needs an
    evaluation. Starts of a study are compared after equal steps."""
    one_run: bool = False
    """The start is a checkpoint on the way of a longer SFT run."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"--epochs is {self.epochs}, below 1")
        require(self.steps is None or self.steps >= 1, f"--steps is {self.steps}, below 1")


def main(flags: Flags) -> None:
    start = start_of_runs(flags.seed, flags.epochs, flags.one_run, flags.sft, flags.rl, flags.before, flags.steps)
    write_start(start, flags.out)
    print(f"result: pass@1 {start.before:.3f} before, {start.last:.3f} after {len(start.reward)} steps -> {flags.out}")


if __name__ == "__main__":
    run_main(lambda: main(parse(Flags, "study_result.py", (__doc__ or "").split("\n")[0], sys.argv[1:])))
