"""The report's section of pretraining: loss, balance of the experts, and what the last validation measured."""

from __future__ import annotations

import math

from megatron_ring.analysis import page
from megatron_ring.analysis.figures import png, pretraining_figure
from megatron_ring.analysis.page import Html
from megatron_ring.analysis.read_run import Record, Run, number
from megatron_ring.analysis.sections import AddFigure, short

CAPTION = "Pretraining by step: loss, with validation of all corpora together, and the loads of the experts."
MEASURED = ("validation", "test")


def pretraining(run: Run | None, add: AddFigure) -> Html:
    """The section; empty where no pretraining was given."""
    if run is None:
        return page.join([])
    parts = [add("pretrain", png(pretraining_figure(run)), CAPTION)]
    measured = [row for what in MEASURED if (row := _last(run, f"{what}/loss")) is not None]
    rows = [cells for what in MEASURED for row in measured[:1] for cells in _measured(row, what)]
    if rows:
        head = ("part", "corpus", "loss (nats per token)", "bits per byte")
        parts.append(page.table(head, rows, text_columns=2))
        parts.append(page.note(f"Measured after step {measured[0]['step']:,}."))
    else:
        parts.append(page.note("The run records no validation."))
    return page.section("Pretraining", *parts)


def _last(run: Run, key: str) -> Record | None:
    return next((row for row in reversed(run.metrics) if math.isfinite(number(row, key))), None)


def _measured(row: Record, what: str) -> list[tuple[str, ...]]:
    """A line of each corpus, and one of all."""
    prefix = f"{what}/loss"
    names = sorted(key.removeprefix(f"{prefix}/") for key in row if key.startswith(f"{prefix}/"))
    keys = [(name, f"/{name}") for name in names] + ([("all", "")] if prefix in row else [])
    return [
        (what, name, short(number(row, prefix + end)), short(number(row, f"{what}/bits_per_byte{end}")))
        for name, end in keys
    ]
