"""The page of the study of C3PO against GRPO, from folders seed-N/SETTING of runs and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from megatron_ring.analysis.read_run import epoch_checkpoints, read_run, read_selection
from megatron_ring.analysis.spread import paired_seeds, step_to_step_variation
from megatron_ring.analysis.study import (
    STEADINESS,
    TIMES,
    Cell,
    Measures,
    Row,
    as_json,
    best_window,
    by_setting,
    collapse_step,
    first_window,
    last_window,
    measure,
    measure_all,
    read_cell,
)
from megatron_ring.analysis.study_claims import Claim, claims_json, claims_table
from megatron_ring.analysis.study_figures import Panel, curves_figure
from megatron_ring.analysis.study_part import after, gather
from megatron_ring.analysis.study_tables import by_seed, table

STEADY = ("c3po", "grpo", "grpo-fewer")
COLLAPSE = ("chosen-c3po", "chosen-grpo", "over-c3po", "over-grpo")
TIMED = ("timed-c3po", "timed-grpo")
STEADY_PAIRS = (("c3po", "grpo"), ("c3po", "grpo-fewer"))
COLLAPSE_PAIRS = (("chosen-c3po", "over-c3po"), ("chosen-grpo", "over-grpo"), ("over-c3po", "over-grpo"))
TIMED_PAIRS = (("timed-c3po", "timed-grpo"),)
# Runs that share a machine: each step's time depends on the others.
SPEED: Measures = {"tokens/s, step to step": ("throughput/tokens_per_second", step_to_step_variation)}
WARM_UP = 2  # steps at the start of a timed run that are not counted

Groups = dict[str, list[Cell]]
Page = tuple[dict[str, str], dict[str, Figure], dict[str, Any]]


def page(out: Path, seeds: Sequence[int]) -> Page:
    """Tables, figures and numbers of the finished study in `out`. Raises UserError for what is missing there."""
    steady, hot, timed = (_read(out, seeds, settings) for settings in (STEADY, COLLAPSE, TIMED))
    rows = {
        "steadiness": measure_all(steady, STEADINESS),
        "times": measure_all(timed, TIMES, skip=WARM_UP),
        "outcome": _outcome(steady),
        "collapse": _collapse(hot),
    }
    tables = {
        "steadiness": table(rows["steadiness"], STEADY, STEADY_PAIRS),
        "times": table(rows["times"], TIMED, TIMED_PAIRS),
        "outcome": table(rows["outcome"], STEADY, STEADY_PAIRS),
        "collapse": table(rows["collapse"], COLLAPSE, COLLAPSE_PAIRS),
        "collapses": by_seed(_collapses(hot), seeds, "step of the collapse"),
        "starts": by_seed(_starts(out, seeds), seeds, "start"),
    }
    figures = {"study-c3po": _curves(steady, timed), "study-collapse": _collapse_curves(hot)}
    pairs = (*STEADY_PAIRS, *COLLAPSE_PAIRS, *TIMED_PAIRS)
    numbers: dict[str, Any] = {name: as_json(found, pairs) for name, found in rows.items()}
    numbers["collapse steps"] = {name: _collapse_steps(cells) for name, cells in hot.items()}
    return tables, figures, {"seeds": list(seeds), **numbers}


def steady_page(folders: Sequence[Path], seeds: Sequence[int] | None = None, settings: Sequence[str] = ()) -> Page:
    """The same of a part of the study: C3PO against GRPO from one start. Arguments and errors are those of `gather`."""
    part = gather(folders, STEADY, seeds, settings)
    groups = part.groups
    rows = {"steadiness": [*measure_all(groups, STEADINESS), *measure_all(groups, SPEED)], "outcome": _outcome(groups)}
    claims = _claims({row.name: row for found in rows.values() for row in found}, part.settings)
    tables = {
        "part": part.text,
        "claims": claims_table(claims),
        **{name: table(found, part.settings, STEADY_PAIRS) for name, found in rows.items()},
        "cost": part.cost,
    }
    numbers: dict[str, Any] = {name: as_json(found, STEADY_PAIRS) for name, found in rows.items()}
    return (
        tables,
        {"study-c3po": _curves(groups, groups, "runs that share a machine")},
        {"seeds": part.seeds, **numbers, "claims": claims_json(claims)},
    )


def _claims(rows: Mapping[str, Row], settings: Sequence[str]) -> list[Claim]:
    """The report's claims on the token budget, of GRPO − C3PO, and one that asks for more."""
    if not {"c3po", "grpo"} <= set(settings):
        return []

    def claim(text: str, measure: str, first: str = "c3po", second: str = "grpo") -> Claim:
        return Claim(text, f"{measure}, {second} − {first}", rows[measure].difference(first, second))

    swing = paired_seeds([0.2] * len(rows["trained tokens, CV"].values["grpo"]), rows["trained tokens, CV"].values["grpo"])
    return [
        Claim("GRPO's trained tokens swing by a fifth or more (what this study needs)", "CV of trained tokens − 0.2", swing),
        claim("C3PO trains as many tokens in every step, GRPO does not", "trained tokens, CV"),
        claim("GRPO's gradient norm swings more", "gradient norm, step to step"),
        claim("GRPO's gradient norm has higher spikes", "gradient norm, largest over median"),
        claim("GRPO's reward drops more often", "reward, step to step (not relative)"),
        claim("GRPO's response length swings more", "response length, step to step"),
        claim("GRPO's throughput swings more", "tokens/s, step to step"),
        claim("C3PO solves more held-out problems", "held-out pass@1 after", "grpo", "c3po"),
    ]


def _read(out: Path, seeds: Sequence[int], settings: Sequence[str]) -> Groups:
    return by_setting([_cell(out / f"seed-{seed}", setting, seed) for setting in settings for seed in seeds])


def _cell(root: Path, setting: str, seed: int) -> Cell:
    if setting in TIMED:
        return read_cell(setting, seed, [root / setting], {})
    before = {"before": root / ("before-over" if setting.startswith("over-") else "before-chosen")}
    after = root / f"{setting}-after"  # on a GPU RL evaluates itself
    return read_cell(setting, seed, [root / setting], before | ({"after": after} if after.is_dir() else {}))


def _of(key: str, statistic: Callable[[Sequence[float]], float]) -> Callable[[Cell], float]:
    return lambda cell: statistic(cell.series(key))


def _outcome(groups: Groups) -> list[Row]:
    return [
        measure(groups, "held-out pass@1 before", lambda cell: cell.pass_rate("before")),
        measure(groups, "held-out pass@1 after", after),
        measure(groups, "reward, last 10 steps", _of("reward/mean", last_window)),
        measure(groups, "entropy, last 10 steps (nats)", _of("entropy", last_window)),
        measure(groups, "response length, last 10 steps (tokens)", _of("response_length/mean", last_window)),
        measure(groups, "trained tokens, all steps", _of("tokens/trained", sum)),
        measure(groups, "generated tokens, all steps", _of("tokens/generated", sum)),
    ]


def _collapse(groups: Groups) -> list[Row]:
    return [
        measure(groups, "held-out pass@1 before", lambda cell: cell.pass_rate("before")),
        measure(groups, "held-out pass@1 after", after),
        measure(groups, "reward, first 10 steps", _of("reward/mean", first_window)),
        measure(groups, "reward, best 10 steps", _of("reward/mean", best_window)),
        measure(groups, "reward, last 10 steps", _of("reward/mean", last_window)),
        measure(groups, "entropy, first 10 steps (nats)", _of("entropy", first_window)),
        measure(groups, "entropy, last 10 steps (nats)", _of("entropy", last_window)),
        measure(groups, "largest gradient norm", _of("grad_norm", max)),
        measure(groups, "step of the collapse (of the last step, where none)", _of("reward/mean", _collapse_or_end)),
    ]


def _collapse_or_end(rewards: Sequence[float]) -> float:
    return float(collapse_step(rewards) or len(rewards))


def _collapses(groups: Groups) -> dict[str, list[str]]:
    return {name: [str(step or "none") for step in _collapse_steps(cells)] for name, cells in groups.items()}


def _collapse_steps(cells: Sequence[Cell]) -> list[int | None]:
    return [collapse_step(cell.series("reward/mean")) for cell in cells]


def _starts(out: Path, seeds: Sequence[int]) -> Mapping[str, list[str]]:
    chosen, over = [], []
    for seed in seeds:
        root = out / f"seed-{seed}"
        selection = read_selection(root / "sft") or {}
        last = epoch_checkpoints(read_run(root / "over"))[-1]
        chosen.append(f"epoch {selection['epoch']:g}, entropy {selection['entropy']:.3f}")
        over.append(f"epoch {last.epoch:g} of the repeated part, entropy {last.entropy:.3f}, loss {last.loss:.3f}")
    return {"chosen by entropy": chosen, "over-trained": over}


def _curves(steady: Groups, timed: Groups, how: str = "timed runs") -> Figure:
    by_time = {name.removeprefix("timed-"): cells for name, cells in timed.items()}
    return curves_figure(
        [
            Panel("Response length (tokens)", "response_length/mean", steady, 1),
            Panel("Gradient norm", "grad_norm", steady, 1),
            Panel("Reward", "reward/mean", steady),
            Panel(f"Throughput (tokens/s), {how}", "throughput/tokens_per_second", by_time, 1),
            Panel("Trained tokens a step", "tokens/trained", steady, 1),
            Panel("Entropy (nats)", "entropy", steady),
        ]
    )


def _collapse_curves(hot: Groups) -> Figure:
    return curves_figure(
        [
            Panel("Reward", "reward/mean", hot),
            Panel("Entropy (nats)", "entropy", hot),
            Panel("Gradient norm", "grad_norm", hot, 1),
            Panel("Response length (tokens)", "response_length/mean", hot),
        ]
    )
