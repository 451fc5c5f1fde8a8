"""Write the report of a pipeline: pretraining, SFT, RL, evaluation, export. What is not given is left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from megatron_ring.analysis.report import write_report
from megatron_ring.errors import run_main


@dataclass(frozen=True)
class Flags:
    """Write report.html (one self-contained file) and figures/*.png from run directories."""

    out: Path
    """Directory for report.html and figures/."""
    pretrain: Path | None = None
    """Run directory of pretraining."""
    sft: Path | None = None
    """Run directory of SFT."""
    rl: Path | None = None
    """Run directory of RL."""
    before: Path | None = None
    """Evaluation of the checkpoint that RL starts from."""
    after: Path | None = None
    """Evaluation of the checkpoint that RL ends with."""
    export: Path | None = None
    """Exported Hugging Face directory."""
    title: str = "Training report"
    """Heading of the page."""


def main(flags: Flags) -> None:
    """Write the report and print its path."""
    parts = (flags.pretrain, flags.sft, flags.rl, flags.before, flags.after, flags.export)
    print(write_report(flags.out, *parts, title=flags.title))


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Flags)))
