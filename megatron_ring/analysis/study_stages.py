"""The page of the study of two stages against a naive mix, from folders seed-N/NAME of runs and evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from megatron_ring.analysis.read_run import read_jsonl
from megatron_ring.analysis.spread import paired_seeds
from megatron_ring.analysis.study import Cell, Row, as_json, last_window, measure, read_cell
from megatron_ring.analysis.study_claims import Claim, claims_json, claims_table
from megatron_ring.analysis.study_figures import Panel, curves_figure, rates_figure
from megatron_ring.analysis.study_part import place, whole_seeds
from megatron_ring.analysis.study_tables import table

STAGES, MIX = "two stages", "naive mix"
PAIRS = ((MIX, STAGES),)
DOMAINS = ("math", "code", "science")  # of the tables; others that a study has follow them
JOBS = ("data", "before", "math", "math-after", "applied", "applied-after", "mix", "mix-after")
ALL = "all"  # in the name of a measure over all held-out problems

Groups = Mapping[str, Sequence[Cell]]
Page = tuple[dict[str, str], dict[str, Figure], dict[str, Any]]


def page(folders: Sequence[Path], seeds: Sequence[int] | None = None) -> Page:
    """Tables, figures and numbers of what has finished in the folders.

    Args:
        seeds: those that must be there; None: all that are whole.

    Raises:
        UserError: as `whole_seeds`.
    """
    part = whole_seeds(folders, (STAGES, MIX), seeds, lambda seed: _cells(folders, seed), JOBS, ("sft", *JOBS), "before")
    groups = part.groups
    first_stage = len(groups[STAGES][0].runs[0].metrics)
    data = [path for seed in part.seeds if (path := place(folders, seed, "data"))]
    tasks, first = ({id: task for path in data for id, task in _tasks(path / file).items()}
                    for file in ("heldout.jsonl", "rl_prompts_math.jsonl"))  # fmt: skip
    kinds = _kinds(groups, tasks, set(first.values()))

    before, after = (_rates(name, name, groups, kinds, tasks) for name in ("before", "after"))
    middle = _rates("after math", "between", {STAGES: groups[STAGES]}, kinds, tasks)
    rows = {"pass@1": [*before, *middle, *after], "compute": _compute(groups)}
    by_kind = [Row(row.name.removeprefix("after, "), row.values) for row in after]
    claims = _claims(before[0], by_kind)
    tables = {
        "part": part.text,
        "claims": claims_table(claims),
        **{name: table(found, (STAGES, MIX), PAIRS) for name, found in rows.items()},
        "cost": part.cost,
    }
    numbers: dict[str, Any] = {name: as_json(found, PAIRS) for name, found in rows.items()}
    figures = {
        "study-stages": curves_figure(_panels(groups), marks=(first_stage,)),
        "study-stages-rates": rates_figure(by_kind, "Held-out pass@1 after training, a point for each seed"),
    }
    return (
        tables,
        figures,
        {"seeds": part.seeds, "steps of the first stage": first_stage, **numbers, "claims": claims_json(claims)},
    )


def _cells(folders: Sequence[Path], seed: int) -> list[Cell]:
    """Both settings of a seed; none where some job has not finished."""
    at = {job: path for job in JOBS if (path := place(folders, seed, job))}
    if len(at) < len(JOBS):
        return []
    start = {"before": at["before"]}
    two = {**start, "after": at["applied-after"], "between": at["math-after"]}
    return [
        read_cell(STAGES, seed, [at["math"], at["applied"]], two),
        read_cell(MIX, seed, [at["mix"]], {**start, "after": at["mix-after"]}),
    ]


def _tasks(file: Path) -> dict[str, str]:
    """Task of each problem that names one, by id: reasoning-gym's do, whose domain is one and the same."""
    named = {str(row.get("id")): (row.get("metadata") or {}).get("task") for row in read_jsonl(file)}
    return {id: task for id, task in named.items() if isinstance(task, str)}


def _kinds(groups: Groups, tasks: Mapping[str, str], first: set[str]) -> list[str]:
    """What pass@1 is told apart by: the domains or, where problems have one domain and name their tasks, the tasks, those
    of the first stage first. Only what every evaluation has."""
    found = [each for cells in groups.values() for cell in cells for each in cell.evaluations.values()]
    domains = set.intersection(*(set(each.result["by_domain"]) for each in found))
    if len(domains) > 1 or not tasks:
        order = (*DOMAINS, *sorted(domains - set(DOMAINS)))
        return sorted(domains, key=order.index)
    names = set.intersection(*({tasks.get(sample["id"], "") for sample in each.graded} for each in found))
    return sorted(names - {""}, key=lambda name: (name not in first, name))


def _rates(name: str, evaluation: str, groups: Groups, kinds: Sequence[str], tasks: Mapping[str, str]) -> list[Row]:
    """pass@1 of one evaluation, over all problems and by kind."""

    def rate(cell: Cell, kind: str) -> float:
        found = cell.evaluations[evaluation]
        if kind in found.result["by_domain"]:
            return cell.pass_rate(evaluation, kind)
        return fmean(float(sample["reward"]) for sample in found.graded if tasks.get(sample["id"]) == kind)

    every = measure(groups, f"{name}, {ALL}", lambda cell: cell.pass_rate(evaluation))
    return [every, *(measure(groups, f"{name}, {kind}", partial(rate, kind=kind)) for kind in kinds)]


def _compute(groups: Groups) -> list[Row]:
    return [
        measure(groups, "steps", lambda cell: float(len(cell.metrics))),
        measure(groups, "trained tokens", lambda cell: sum(cell.series("tokens/trained"))),
        measure(groups, "generated tokens", lambda cell: sum(cell.series("tokens/generated"))),
        measure(groups, "entropy, last 10 steps (nats)", lambda cell: last_window(cell.series("entropy"))),
    ]


def _claims(before: Row, after: Sequence[Row]) -> list[Claim]:
    """The report's claim over all held-out problems and by kind, and one that asks for a study that can tell.

    Args:
        before: pass@1 of the start, over all problems.
        after: pass@1 in the end, over all problems (the first) and by kind.
    """
    gain = paired_seeds(before.values[MIX], after[0].values[MIX])
    measured = f"held-out pass@1 after, {STAGES} − {MIX}"
    return [
        Claim("RL on all problems at once learns (what this study needs)", f"held-out pass@1, {MIX}, after − before", gain),
        *(Claim(f"Two stages beat the naive mix, {row.name}", measured, row.difference(MIX, STAGES)) for row in after),
    ]


def _panels(groups: Groups) -> list[Panel]:
    return [
        Panel("Reward on the step's own problems", "reward/mean", groups),
        Panel("Entropy (nats)", "entropy", groups),
        Panel("Response length (tokens)", "response_length/mean", groups),
        Panel("Gradient norm", "grad_norm", groups),
    ]
