"""Scores of benchmarks beside those that papers publish, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from megatron_ring.analysis.figures import BLUE, GREY, ORANGE, PURPLE, STYLE, axes_grid

MARKS = {"ring-lite": ("D", ORANGE), "ring-lite-2507": ("^", PURPLE)}
# What is published in other units than ours is no point of comparison.
OTHER_UNITS = ("codeforces",)


def benchmarks_figure(parts: Sequence[Mapping[str, Any]]) -> Figure | None:
    """A line for each benchmark that has a score: the score with its 95 % interval, and the published ones. None without
    any. `parts`: of result.json."""
    scored = [part for part in parts if part["score"] is not None]
    if not scored:
        return None
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = axes_grid(1, 1, 1.2 + 0.28 * len(scored))
        places = range(len(scored))
        scores = [100 * part["score"] for part in scored]
        errors = [196 * (part["standard_error"] or 0.0) for part in scored]
        bars = [[min(score, error) for score, error in zip(scores, errors, strict=True)],
                [min(100 - score, error) for score, error in zip(scores, errors, strict=True)]]  # fmt: skip
        axes.barh(places, scores, height=0.55, color=BLUE, label="this checkpoint")
        axes.errorbar(scores, places, xerr=bars, fmt="none", ecolor=GREY, capsize=3)
        for paper, (mark, colour) in MARKS.items():
            published = {place: _published(part, paper) for place, part in enumerate(scored)}
            found = [(score, place) for place, score in published.items() if score is not None]
            if found:
                axes.plot(*zip(*found, strict=True), mark, color=colour, markersize=5, label=f"{paper}, published")
        axes.set_yticks(places, [part["title"] for part in scored])
        axes.set_xlim(0, 100)
        axes.set_xlabel("score, of 100")
        axes.set_ylim(len(scored) - 0.4, -0.6)
        figure.legend(loc="outside upper right", ncols=1 + len(MARKS))
    return figure


def _published(part: Mapping[str, Any], paper: str) -> float | None:
    score: float | None = part["published"].get(paper)
    return None if part["benchmark"] in OTHER_UNITS else score
