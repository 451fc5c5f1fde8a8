"""A study's figures: one panel for each metric, one curve for each setting, the seeds as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from megatron_ring.analysis.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, STYLE, WIDTH_INCHES, smooth
from megatron_ring.analysis.spread import sample, student
from megatron_ring.analysis.study import Cell, Row

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
DPI = 100
SMOOTHED = 5  # steps of the moving mean that is drawn


@dataclass(frozen=True)
class Panel:
    """What one panel shows: a metric of these settings over steps, as a moving mean over `window` steps of a run. Without a
    key: held-out pass@1, at the steps that have it."""

    title: str
    key: str
    groups: Mapping[str, Sequence[Cell]]
    window: int = SMOOTHED


def curves_figure(panels: Sequence[Panel], columns: int = 2, marks: Sequence[int] = (), intervals: bool = False) -> Figure:
    """Mean over seeds as a line, smallest and largest as a band or, with `intervals`, the mean's 95 % interval; vertical
    lines at the steps of `marks`."""
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 2.6 * rows), dpi=DPI, layout="constrained")
        grid = [axes for line in figure.subplots(rows, columns, squeeze=False) for axes in line]
        for axes, panel in zip(grid, panels, strict=False):
            for (setting, cells), colour in zip(panel.groups.items(), COLOURS, strict=False):
                if panel.key:
                    at, curves = None, [_smoothed(cell, panel) for cell in cells]
                else:
                    at, curves = list(cells[0].held_out), [list(cell.held_out.values()) for cell in cells]
                band(axes, curves, colour, setting, at, intervals)
            for mark in marks:
                axes.axvline(mark + 0.5, color=GREY, linewidth=0.8, linestyle=":")
            axes.set_title(panel.title)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
            axes.set_ylim(bottom=0)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        grid[0].legend(loc="best")
        return figure


def _smoothed(cell: Cell, panel: Panel) -> list[float]:
    """Each run by itself: no mean reaches from one stage into the next."""
    values = iter(cell.series(panel.key))
    return [mean for run in cell.runs for mean in smooth(list(islice(values, len(run.metrics))), panel.window)]


def rates_figure(rows: Sequence[Row], title: str) -> Figure:
    """Pass rates: a point for each seed and a dash at the mean, settings side by side within each row."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.2), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        settings = list(rows[0].values)
        for index, (setting, colour) in enumerate(zip(settings, COLOURS, strict=False)):
            shift = (index - (len(settings) - 1) / 2) * 0.2
            at = [position + shift for position in range(len(rows))]
            means = [row.sample(setting).mean for row in rows]
            axes.plot(at, means, color=colour, linestyle="none", marker="_", markersize=22, markeredgewidth=2)
            for position, row in zip(at, rows, strict=True):
                label = setting if position == at[0] else None
                values = row.values[setting]
                axes.plot([position] * len(values), values, color=colour, linestyle="none", marker="o", markersize=4,
                          alpha=0.7, label=label)  # fmt: skip
        axes.set_xticks(range(len(rows)), [row.name for row in rows], color=INK)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        largest = max(value for row in rows for values in row.values.values() for value in values)
        axes.set_ylim(0, min(1, 1.3 * largest) or 1)  # room for the legend
        axes.set_title(title)
        axes.grid(axis="x", visible=False)
        axes.legend(loc="best", ncols=len(settings))
        return figure


def band(
    axes: Axes, curves: Sequence[Sequence[float]], colour: str, label: str, at: Sequence[float] | None = None,
    intervals: bool = False,
) -> None:  # fmt: skip
    """The mean of the curves as a line over the places `at` (default: 1, 2, …). The band: smallest and largest or, with
    `intervals`, the mean's 95 % interval, which one curve has not."""
    steps = range(1, len(curves[0]) + 1) if at is None else at
    columns = list(zip(*curves, strict=True))
    ends = [(min(column), max(column)) for column in columns]
    if intervals and len(curves) > 1:
        found = [student(sample(column)) for column in columns]
        ends = [(each.low, each.high) for each in found if each is not None]
    axes.fill_between(steps, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.18, linewidth=0)
    axes.plot(steps, [sum(c) / len(c) for c in columns], color=colour, label=label)
