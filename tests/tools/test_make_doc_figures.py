"""The figures of README: drawn from a run's own files, small enough for a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ring.analysis.figures import png
from megatron_ring.errors import UserError
from tests.analysis.plausible import write_evaluation, write_rl, write_sft
from tests.conftest import ROOT
from tools.make_doc_figures import demo_figure, pipeline_figure

LARGEST = 300_000  # bytes


def test_the_pipeline_is_the_one_in_the_docs() -> None:
    assert {text.get_text() for text in pipeline_figure().axes[0].texts} >= {"SFT", "RL", "sampler", "update"}
    assert len(png(pipeline_figure())) < LARGEST


def test_the_demo_has_the_runs_own_figures(tmp_path: Path) -> None:
    write_sft(tmp_path / "sft")
    write_rl(tmp_path / "rl")
    write_evaluation(tmp_path / "before", 0.3)
    write_evaluation(tmp_path / "after", 0.6)
    chosen = {"checkpoint": "step_200", "epoch": 5, "entropy": 0.31, "reason": "", "band": [0.3, 0.5], "epochs": []}
    (tmp_path / "sft/selection.json").write_text(json.dumps(chosen))
    choice, reward, rates = demo_figure(tmp_path).axes
    assert "chosen: epoch 5" in choice.get_legend_handles_labels()[1]
    assert len(reward.lines[0].get_xdata()) == 80
    result = json.loads((tmp_path / "after/result.json").read_text())
    assert f"{100 * result['pass_at_1']:.1f}" in {text.get_text() for text in rates.texts}


def test_a_demo_that_has_not_finished(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    with pytest.raises(UserError, match="run `make demo` first"):
        demo_figure(tmp_path)


@pytest.mark.parametrize("figure", sorted(path.name for path in (ROOT / "docs/figures").glob("*.png")))
def test_figures_are_small(figure: str) -> None:
    assert (ROOT / "docs/figures" / figure).stat().st_size < LARGEST
