#!/usr/bin/env python
"""Draw the figures of README: the pipeline, and what `make demo` came to.

    make demo SEED=1
    python tools/make_doc_figures.py --run runs/tiny-seed1 --out docs/figures

Writes pipeline.png, and demo.png where --run is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from megatron_ring.analysis.comparison import Row, compare
from megatron_ring.analysis.figures import BLUE, GREEN, GREY, INK, ORANGE, STYLE, png, smooth
from megatron_ring.analysis.read_run import epoch_checkpoints, read_evaluation, read_run, read_selection
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError, run_main

DPI = 150
# The stages: heading, what it does, the command.
STAGES = (
    ("Base model", "published folder,\nor random weights", "tools/convert_hf.py"),
    ("SFT", "a checkpoint and its\nentropy per epoch", "megatron_ring.sft"),
    ("Choice", "validation entropy\nwithin a band", "tools/select_checkpoint.py"),
    ("RL", "C3PO: exactly Φ\ntokens a step", "megatron_ring.rl"),
    ("Evaluation", "pass@1 on\nheld-out prompts", "megatron_ring.evaluate"),
    ("Export", "published folder", "tools/convert_hf.py"),
)
# One step of RL.
LOOP = (
    ("prompts", "L per step"),
    ("sampler", "K responses each"),
    ("verifiers", "a reward each"),
    ("advantages", "within each group"),
    ("budget", "exactly Φ tokens"),
    ("update", "one step of AdamW"),
)


def main() -> None:
    """Parse the flags and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished `make demo` (default: the pipeline alone)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    flags = parser.parse_args()
    figures = {"pipeline": pipeline_figure()}
    if flags.run is not None:
        figures["demo"] = demo_figure(flags.run)
    for name, figure in figures.items():
        write_atomically(flags.out / f"{name}.png", png(figure))
        print(flags.out / f"{name}.png")


def pipeline_figure() -> Figure:
    """The stages in a row, and the loop of one RL step below them."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.7), dpi=DPI)
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.set_axis_off()
        axes.set_xlim(0, 60)
        axes.set_ylim(0, 24.6)
        for place, (heading, what, command) in enumerate(STAGES):
            left = 10 * place
            colour = ORANGE if heading == "RL" else BLUE
            _box(axes, (left + 0.4, 15.2), (8.4, 7), colour)
            axes.text(left + 4.6, 20.8, heading, ha="center", va="center", fontsize=10.5, weight="bold", color=INK)
            axes.text(left + 4.6, 18.6, what, ha="center", va="center", fontsize=8, color=INK)
            axes.text(left + 4.6, 16.2, command, ha="center", va="center", fontsize=5.6, family="monospace", color="#5C646D")
            if place:
                _arrow(axes, (left - 1.1, 18.7), (left + 0.3, 18.7))
        _box(axes, (0.4, 0.6), (58.4, 11.6), ORANGE, alpha=0.06)
        for x in (30.4, 38.8):
            axes.plot([x, 0.4 if x < 35 else 58.8], [15.2, 12.2], color=ORANGE, linewidth=0.8, linestyle=":")
        note = "One RL step: the sampler runs inside the training process, on the training weights. Nothing is copied."
        axes.text(1.4, 10.7, note, va="center", fontsize=8, color=INK)
        for place, (heading, what) in enumerate(LOOP):
            start = 9.65 * place + 1.2
            _box(axes, (start, 4.6), (7.9, 4.6), ORANGE, alpha=0.12)
            axes.text(start + 3.95, 7.7, heading, ha="center", va="center", fontsize=9, weight="bold", color=INK)
            axes.text(start + 3.95, 5.9, what, ha="center", va="center", fontsize=7.4, color=INK)
            if place:
                _arrow(axes, (start - 1.65, 6.9), (start - 0.1, 6.9))
        axes.plot([53.4, 53.4, 14.8], [4.5, 2.4, 2.4], color=INK, linewidth=1)
        _arrow(axes, (14.8, 2.4), (14.8, 4.5))
        axes.text(34, 1.6, "the same weights, for the next step", ha="center", va="center", fontsize=7.4, color=INK)
    return figure


def _box(axes: Axes, corner: tuple[float, float], size: tuple[float, float], colour: str, alpha: float = 0.1) -> None:
    shape: Any = {"boxstyle": "round,pad=0,rounding_size=0.6", "linewidth": 1.2}
    axes.add_patch(
        FancyBboxPatch(corner, *size, facecolor=matplotlib.colors.to_rgba(colour, alpha), edgecolor=colour, **shape)
    )


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    look: Any = {"arrowstyle": "-|>", "color": INK, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=look)


def demo_figure(run: Path) -> Figure:
    """Three panels: the choice by entropy, the reward of RL, pass@1 before and after.

    Raises:
        UserError: the demo has not finished there.
    """
    selection = read_selection(run / "sft")
    if selection is None:
        raise UserError(f"--run {run}: no finished demo: run `make demo` first")
    rows = compare(read_evaluation(run / "before"), read_evaluation(run / "after"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.8), dpi=DPI, layout="constrained")
        choice, reward, rates = figure.subplots(1, 3)
        _choice(choice, run / "sft", selection)
        steps, values = read_run(run / "rl").series("reward/mean")
        reward.plot(steps, values, color=BLUE, alpha=0.3, linewidth=0.8)
        reward.plot(steps, smooth(values, 9), color=BLUE)
        reward.set(title="RL: mean reward of a step", xlabel="step", ylim=(0, None))
        _rates(rates, rows)
    return figure


def _choice(axes: Axes, run: Path, selection: dict[str, Any]) -> None:
    epochs = epoch_checkpoints(read_run(run))
    low, high = selection["band"]
    axes.axhspan(low, high, color=GREEN, alpha=0.15, linewidth=0, label=f"band {low:g} to {high:g}")
    axes.plot([epoch.epoch for epoch in epochs], [epoch.entropy for epoch in epochs], color=INK, marker="o", markersize=3)
    ring: Any = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 2, "linestyle": "none"}
    label = f"chosen: epoch {selection['epoch']:g}"
    axes.plot([selection["epoch"]], [selection["entropy"]], color=ORANGE, label=label, **ring)
    axes.set(title="SFT: validation entropy (nats)", xlabel="epoch", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def _rates(axes: Axes, rows: list[Row]) -> None:
    for place, row in enumerate(rows):
        for shift, estimate, colour, label in ((-0.18, row.before, GREY, "before RL"), (0.18, row.after, BLUE, "after RL")):
            if estimate is None:
                continue
            gap = [[estimate.value - estimate.interval.low], [estimate.interval.high - estimate.value]]
            error: Any = {"yerr": gap, "error_kw": {"linewidth": 1, "ecolor": INK}, "label": label if not place else None}
            axes.bar(place + shift, estimate.value, 0.34, color=colour, **error)
            axes.text(place + shift, 0.02, f"{100 * estimate.value:.1f}", ha="center", fontsize=8, color="white")
    axes.set_xticks(range(len(rows)), [row.domain for row in rows])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(title="Held-out pass@1, 95 % intervals", ylim=(0, 0.8))
    axes.legend(loc="upper left", ncols=2)


if __name__ == "__main__":
    run_main(main)
