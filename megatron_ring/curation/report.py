"""The report of a curation: how many rows each step took from each source, what was dropped and why, with samples, and what
the rows that stay look like. The same rows give the same page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_ring.analysis.page import Html, details, element, join, note, table
from megatron_ring.curation.store import Row, Shard, Tally, read_lines
from megatron_ring.curation.text import prompt_text
from megatron_ring.curation.workers import Workers
from megatron_ring.data.writing import write_atomically

FIELDS = ("language", "subject", "level", "difficulty", "answer_kind", "original_source")
_SHOWN = 30  # values of a field
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } th, td { padding: .2rem .7rem; border-bottom: 1px solid #d8dee4 }
th { text-align: left } .number { text-align: right; font-variant-numeric: tabular-nums } .note { color: #59636e }
.scroll { overflow-x: auto } pre { white-space: pre-wrap; background: #f6f8fa; padding: .6rem; margin: .3rem 0 }
.bar { display: inline-block; height: .7rem; background: #4a7ebb }
"""


def write_report(path: Path, steps: Sequence[tuple[str, Tally]], shards: Sequence[Shard], workers: Workers) -> None:
    """Write the page; it is one file."""
    counts: dict[str, Counter[str]] = {}
    for found in workers.run([(describe, (shard,)) for shard in shards], lambda: None):
        for name, values in found.items():
            counts.setdefault(name, Counter()).update(values)
    parts = [element("h1", "Curation"), _summary(steps), element("h2", "Steps"), _funnel(steps), element("h2", "By source"),
             _by_source(steps), element("h2", "What was dropped"), *_reasons(steps), element("h2", "What was changed"),
             _changes(steps), element("h2", "Rows that stay"), *_distributions(counts)]  # fmt: skip
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = join([
        element("meta", charset="utf-8"), Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("title", "Curation"), element("style", Html(_STYLE)),
    ])  # fmt: skip
    page = f"<!DOCTYPE html>\n<html lang=en><head>{head}</head><body>{join(parts)}</body></html>\n"
    write_atomically(path, page.encode("utf-8", "replace"))


def describe(shard: Shard) -> dict[str, dict[str, int]]:
    """How often each value of the fields comes among a shard's rows."""
    found: dict[str, Counter[str]] = {}
    for line in read_lines(shard.kept):
        for name, value in _values(json.loads(line)):
            found.setdefault(name, Counter())[value] += 1
    return {name: dict(counts) for name, counts in found.items()}


def _values(row: Row) -> Iterable[tuple[str, str]]:
    metadata = row["metadata"]
    yield "source", str(metadata["source"])
    yield "domain", str(row["domain"])
    length = len(prompt_text(row["prompt"]))
    bound = 1 << max(4, (length - 1).bit_length())
    yield "characters of the problem", f"up to {bound:>9,}"
    for name in FIELDS:
        value = metadata.get(name)
        if value is None:
            continue
        if name == "difficulty" and isinstance(value, int | float):
            low = min(9, int(value * 10)) / 10
            value = f"{low:.1f} to {low + 0.1:.1f}"
        yield name, _short(value)


def _short(value: Any) -> str:
    return str(value)[:60]


def _summary(steps: Sequence[tuple[str, Tally]]) -> Html:
    read, kept = steps[0][1].read.total(), steps[-1][1].kept.total()
    dropped = sum(tally.dropped.total() for _, tally in steps)
    return note(
        f"{read:,} rows were read: {kept:,} stay, {dropped:,} were dropped. ledger.jsonl says of each dropped row why."
    )


def _funnel(steps: Sequence[tuple[str, Tally]]) -> Html:
    first = max(1, steps[0][1].read.total())
    rows = []
    for name, tally in steps:
        read, kept = tally.read.total(), tally.kept.total()
        bar = element("span", class_="bar", style=f"width:{12 * kept / first:.2f}rem")
        rows.append([name, f"{read:,}", f"{kept:,}", f"{read - kept:,}", f"{(read - kept) / max(1, read):.2%}", bar])
    return table(["step", "read", "kept", "dropped", "share", ""], rows)


def _by_source(steps: Sequence[tuple[str, Tally]]) -> Html:
    sources = sorted(steps[0][1].read)
    rows = []
    for source in sources:
        kept = [tally.kept[source] for _, tally in steps]
        rows.append([source, f"{steps[0][1].read[source]:,}", *(f"{count:,}" for count in kept)])
    return table(["source", "read", *(f"after {name}" for name, _ in steps)], rows)


def _reasons(steps: Sequence[tuple[str, Tally]]) -> Iterable[Html]:
    for name, tally in steps:
        for reason, count in sorted(tally.reasons().items(), key=lambda item: (-item[1], item[0])):
            by_source = ", ".join(
                f"{key.split(chr(9))[0]} {number:,}"
                for key, number in sorted(tally.dropped.items())
                if key.endswith(f"\t{reason}")
            )
            samples = (
                join([element("p", f"{identity}: {evidence}"), element("pre", text)])
                for identity, evidence, text in tally.samples.get(reason, [])
            )
            yield details(f"{name}: {reason}: {count:,} ({by_source})", *samples)
    if not any(tally.dropped for _, tally in steps):
        yield note("Nothing.")


def _changes(steps: Sequence[tuple[str, Tally]]) -> Html:
    rows = [[name, reason, f"{count:,}"] for name, tally in steps for reason, count in sorted(tally.changed.items())]
    return table(["step", "change", "rows"], rows, text_columns=2) if rows else note("Nothing.")


def _distributions(counts: dict[str, Counter[str]]) -> Iterable[Html]:
    if not counts:
        yield note("None.")
    for name in ("source", "domain", "characters of the problem", *FIELDS):
        values = counts.get(name)
        if not values:
            continue
        ordered = sorted(values.items()) if name not in ("subject", "language") else values.most_common()
        total, most = values.total(), max(values.values())
        rows = [
            [
                value,
                f"{count:,}",
                f"{count / total:.1%}",
                element("span", class_="bar", style=f"width:{12 * count / most:.2f}rem"),
            ]
            for value, count in ordered[:_SHOWN]
        ]
        left = [note(f"and {len(ordered) - _SHOWN:,} more")] if len(ordered) > _SHOWN else []
        yield join([element("h3", name), table(["", "rows", "share", ""], rows), *left])
