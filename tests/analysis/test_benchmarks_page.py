"""The picture of an evaluation of benchmarks."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ring.analysis.benchmarks_figure import benchmarks_figure


def part(name: str, score: float | None, error: float | None, **published: float) -> dict[str, Any]:
    papers = {paper.replace("_", "-"): value for paper, value in published.items()}
    return {"benchmark": name, "title": name.upper(), "score": score, "standard_error": error, "published": papers}


def test_scores_stand_beside_published_ones() -> None:
    parts = [part("bbh", 0.5, 0.1, ring_lite_2507=88.65), part("simpleqa", None, None), part("drop", 0.99, 0.02),
             part("codeforces", 0.2, None, ring_lite=86.45)]  # fmt: skip
    figure = benchmarks_figure(parts)
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["BBH", "DROP", "CODEFORCES"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([50, 99, 20])  # type: ignore[attr-defined]
    intervals = axes.collections[0].get_segments()  # type: ignore[attr-defined]
    ends = [end for line in intervals for end in line[:, 0]]
    assert ends == pytest.approx([30.4, 69.6, 95.08, 100, 20, 20])
    marks = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}  # type: ignore[union-attr]
    assert marks["ring-lite-2507, published"] == [[88.65, 0]] and "ring-lite, published" not in marks
    assert benchmarks_figure(parts[1:2]) is None
