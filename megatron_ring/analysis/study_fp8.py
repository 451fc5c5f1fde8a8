"""The page of the study of sampling with experts in FP8: C3PO from one start, with and without a correction, against the
policy's own weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from megatron_ring.analysis.spread import coefficient_of_variation, paired_seeds
from megatron_ring.analysis.study import (
    STEADINESS,
    Cell,
    Measures,
    Row,
    Statistic,
    as_json,
    last_window,
    measure,
    measure_all,
)
from megatron_ring.analysis.study_c3po import WARM_UP, Page
from megatron_ring.analysis.study_claims import Claim, claims_json, claims_table
from megatron_ring.analysis.study_figures import Panel, curves_figure
from megatron_ring.analysis.study_part import after, gather
from megatron_ring.analysis.study_tables import table

OWN, CORRECTED = "bf16", "fp8-icepop"
NARROW = ("fp8", "fp8-recomputed", CORRECTED)
SETTINGS = (OWN, *NARROW)
FOLDERS = {OWN: "c3po"}  # the study of C3PO has run it already
PAIRS = (*((OWN, name) for name in NARROW), ("fp8-recomputed", CORRECTED))
MARGIN = 0.03  # of pass@1 and of reward: what is called a loss
BEFORE, AFTER, REWARD = "held-out pass@1 before", "held-out pass@1 after", "reward, last 10 steps"
KL, APART = "KL to the start, last 10 steps (0.001 nats)", "sampler − trainer, mean (0.001 nats)"


def _thousandths(statistic: Statistic) -> Statistic:
    """Of small numbers, which a table shows with three digits behind the point."""
    return lambda values: 1000 * statistic(values)


MISMATCH: Measures = {
    APART: ("mismatch/logprob_abs_mean", _thousandths(fmean)),
    "the same, last 10 steps": ("mismatch/logprob_abs_mean", _thousandths(last_window)),
    "sampler − trainer, largest (nats)": ("mismatch/logprob_abs_max", max),
    "masked by the correction (of 1,000 tokens)": ("mismatch/masked_fraction", _thousandths(fmean)),
    "ratio clipped (of 1,000 tokens)": ("clip_fraction", _thousandths(fmean)),
}
SWINGS: Measures = {
    "gradient norm, mean": ("grad_norm", fmean),
    "gradient norm, CV": ("grad_norm", coefficient_of_variation),
    **{name: how for name, how in STEADINESS.items() if "step to step" in name and "tokens" not in name},
    "gradient norm, largest over median": STEADINESS["gradient norm, largest over median"],
}
TIMES: Measures = {
    "sampling (s)": ("time/sample", fmean),
    "recomputed and reference log-probs (s)": ("time/first_pass", fmean),
    "update (s)": ("time/train", fmean),
}


def page(folders: Sequence[Path], seeds: Sequence[int] | None = None, settings: Sequence[str] = ()) -> Page:
    """Tables, figures and numbers. Arguments and errors are those of `gather`."""
    part = gather(folders, SETTINGS, seeds, settings, FOLDERS)
    rows = {
        "outcome": _outcome(part.groups),
        "mismatch": measure_all(part.groups, MISMATCH),
        "swings": measure_all(part.groups, SWINGS),
        "times": measure_all(part.groups, TIMES, skip=WARM_UP),
    }
    claims = _claims({row.name: row for found in rows.values() for row in found}, part.settings)
    tables = {
        "part": part.text,
        "claims": claims_table(claims),
        **{name: table(found, part.settings, PAIRS) for name, found in rows.items()},
        "cost": part.cost,
    }
    numbers = {name: as_json(found, PAIRS) for name, found in rows.items()}
    return (
        tables,
        {"study-fp8": curves_figure(_panels(part.groups), intervals=True)},
        {"seeds": part.seeds, **numbers, "claims": claims_json(claims)},
    )


def _outcome(groups: Mapping[str, Sequence[Cell]]) -> list[Row]:
    def last(key: str, statistic: Statistic = last_window) -> Callable[[Cell], float]:
        return lambda cell: statistic(cell.series(key))

    return [
        measure(groups, BEFORE, lambda cell: cell.pass_rate("before")),
        measure(groups, AFTER, after),
        measure(groups, REWARD, last("reward/mean")),
        measure(groups, "entropy, last 10 steps (nats)", last("entropy")),
        measure(groups, KL, last("kl", _thousandths(last_window))),
        measure(groups, "response length, last 10 steps (tokens)", last("response_length/mean")),
    ]


def _claims(rows: Mapping[str, Row], settings: Sequence[str]) -> list[Claim]:
    """What speaks for FP8 and what against it. A setting that is not there has none."""

    def claim(text: str, measured: str, first: str, second: str, margin: float = 0.0) -> list[Claim]:
        """That `second` lies above `first`, or less than the margin below."""
        if not {first, second} <= set(settings):
            return []
        values = rows[measured].values
        found = paired_seeds([value - margin for value in values[first]], values[second])
        return [Claim(text, f"{measured}, {second} − {first}{f' + {margin:g}' if margin else ''}", found)]

    how = dict(zip(NARROW, ("with the sampler's log-probs", "with recomputed ones", "with IcePop"), strict=True))
    found = []
    if OWN in settings:
        gain = paired_seeds(rows[BEFORE].values[OWN], rows[AFTER].values[OWN])
        found.append(Claim("RL without FP8 learns (what this study needs)", "held-out pass@1, bf16, after − before", gain))
    found += claim("FP8 takes the sampler further from the trainer", APART, OWN, "fp8")
    for name, words in how.items():
        found += claim(f"FP8 {words} loses less than 3 points of held-out pass@1", AFTER, OWN, name, MARGIN)
    for name, words in how.items():
        found += claim(f"FP8 {words} loses less than 0.03 of reward", REWARD, OWN, name, MARGIN)
    for name in NARROW[:2]:
        found += claim(f"FP8 {how[name]} goes further from the start", KL, OWN, name)
        found += claim(f"FP8 {how[name]} makes the gradient norm swing more", "gradient norm, step to step", OWN, name)
    found += claim("IcePop solves more held-out problems than no correction", AFTER, NARROW[1], CORRECTED)
    return found


def _panels(groups: Mapping[str, Sequence[Cell]]) -> list[Panel]:
    return [
        Panel("Reward", "reward/mean", groups),
        Panel("Held-out pass@1", "", groups),
        Panel("KL to the start (nats)", "kl", groups),
        Panel("Entropy (nats)", "entropy", groups),
        Panel("Sampler − trainer, mean |Δ log-prob| (nats)", "mismatch/logprob_abs_mean", groups),
        Panel("Gradient norm", "grad_norm", groups),
    ]
