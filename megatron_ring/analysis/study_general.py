"""The page of the study of general RL: what a replay share of reasoning keeps, from what its evaluations measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from megatron_ring.analysis.read_run import read_jsonl
from megatron_ring.analysis.study import Row, as_json, by_setting, read_cell
from megatron_ring.analysis.study_figures import Panel, curves_figure, rates_figure
from megatron_ring.analysis.study_tables import by_seed, table

BEFORE, REPLAY, ALONE = "before", "with replay", "without replay"
PAIRS = ((BEFORE, REPLAY), (BEFORE, ALONE), (REPLAY, ALONE))
FOLDERS = {REPLAY: "replay", ALONE: "alone"}

Page = tuple[dict[str, str], dict[str, Figure], dict[str, Any]]
# Seed, then setting, then measure: value, low, high.
Measured = Mapping[int, Mapping[str, Mapping[str, Mapping[str, float]]]]


def general_page(out: Path, found: Measured) -> Page:
    """Tables, figures and numbers. `out` has the runs, seed-N/NAME. Raises UserError for a run that is missing."""
    seeds = sorted(found)
    settings = (BEFORE, REPLAY, ALONE)
    measures = list(found[seeds[0]][BEFORE])
    rows = [
        Row(name, {one: tuple(found[seed][one][name]["value"] for seed in seeds) for one in settings}) for name in measures
    ]
    each = {
        f"{name}, {setting}": [_interval(found[seed][setting][name]) for seed in seeds]
        for name in ("win rate", "reasoning")
        for setting in settings
    }
    reward_model = [read_jsonl(out / f"seed-{seed}" / "reward" / "metrics.jsonl")[-1] for seed in seeds]
    accuracy = [float(record.get("validation/accuracy", float("nan"))) for record in reward_model]
    cells = [read_cell(name, seed, [out / f"seed-{seed}" / FOLDERS[name]], {}) for name in FOLDERS for seed in seeds]
    groups = by_setting(cells)
    panels = [
        Panel("Reward on the step's own prompts", "reward/mean", groups),
        Panel("KL to the start", "kl", groups),
        Panel("Response length (tokens)", "response_length/mean", groups),
        Panel("Entropy (nats)", "entropy", groups),
    ]
    shares = [row for row in rows if row.name != "quality"]
    figures = {
        "study-general": curves_figure(panels),
        "study-general-rates": rates_figure(shares, "Held-out tasks, a point for each seed"),
    }
    tables = {"held out": table(rows, settings, PAIRS), "by seed": by_seed(each, seeds, "")}
    numbers = {"seeds": seeds, "reward model, validation accuracy": accuracy, "held out": as_json(rows, PAIRS)}
    return tables, figures, numbers


def _interval(one: Mapping[str, float]) -> str:
    return f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
