"""The page of the study of two stages against a naive mix, from folders seed-N/NAME of runs and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from megatron_ring.analysis.study import Cell, Row, as_json, by_setting, last_window, measure, read_cell
from megatron_ring.analysis.study_figures import Panel, curves_figure, rates_figure
from megatron_ring.analysis.study_tables import table

STAGES, MIX = "two stages", "naive mix"
PAIRS = ((MIX, STAGES),)
DOMAINS = ("math", "code", "science")  # of the tables; others that a study has follow them

Page = tuple[dict[str, str], dict[str, Figure], dict[str, Any]]


def page(out: Path, seeds: Sequence[int]) -> Page:
    """Tables, figures and numbers of the finished study in `out`. Raises UserError for what is missing there."""
    cells = []
    for seed in seeds:
        root = out / f"seed-{seed}"
        start = {"before": root / "before"}
        two = {**start, "after": root / "applied-after", "between": root / "math-after"}
        cells.append(read_cell(STAGES, seed, [root / "math", root / "applied"], two))
        cells.append(read_cell(MIX, seed, [root / "mix"], {**start, "after": root / "mix-after"}))
    groups = by_setting(cells)
    first_stage = len(groups[STAGES][0].runs[0].metrics)

    before, after = _rates("before", "before", groups), _rates("after", "after", groups)
    middle = _rates("after math", "between", {STAGES: groups[STAGES]})
    compute = [
        measure(groups, "steps", lambda cell: float(len(cell.metrics))),
        measure(groups, "trained tokens", lambda cell: sum(cell.series("tokens/trained"))),
        measure(groups, "generated tokens", lambda cell: sum(cell.series("tokens/generated"))),
        measure(groups, "entropy, last 10 steps (nats)", lambda cell: last_window(cell.series("entropy"))),
    ]
    panels = [
        Panel("Reward on the step's own problems", "reward/mean", groups),
        Panel("Entropy (nats)", "entropy", groups),
        Panel("Response length (tokens)", "response_length/mean", groups),
        Panel("Gradient norm", "grad_norm", groups),
    ]
    by_domain = [Row(row.name.removeprefix("after, "), row.values) for row in after]
    figures = {
        "study-stages": curves_figure(panels, marks=(first_stage,)),
        "study-stages-rates": rates_figure(by_domain, "Held-out pass@1 after training, a point for each seed"),
    }
    rows = {"pass@1": [*before, *middle, *after], "compute": compute}
    tables = {name: table(found, (STAGES, MIX), PAIRS) for name, found in rows.items()}
    numbers = {name: as_json(found, PAIRS) for name, found in rows.items()}
    return tables, figures, {"seeds": list(seeds), "steps of the first stage": first_stage, **numbers}


def _rates(name: str, evaluation: str, groups: Mapping[str, Sequence[Cell]]) -> list[Row]:
    """pass@1 of one evaluation, over all problems and by domain."""

    def of(domain: str | None) -> Callable[[Cell], float]:
        return lambda cell: cell.pass_rate(evaluation, domain)

    some = next(iter(groups.values()))[0].evaluations[evaluation].result["by_domain"]
    order = (*DOMAINS, *sorted(set(some) - set(DOMAINS)))
    domains: list[str | None] = [None, *sorted(some, key=order.index)]
    return [measure(groups, f"{name}, {domain or 'all'}", of(domain)) for domain in domains]
