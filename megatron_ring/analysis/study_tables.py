"""A study's tables in Markdown: mean and standard deviation over seeds, and paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from megatron_ring.analysis.spread import Difference, Sample
from megatron_ring.analysis.study import Row

Pair = tuple[str, str]


def table(rows: Sequence[Row], settings: Sequence[str], pairs: Sequence[Pair], corner: str = "") -> str:
    """A line for each row, a column for each setting, and one for each pair (second − first), bold where its interval
    leaves out 0. A setting that a row lacks is left blank."""
    pairs = [pair for pair in pairs if set(pair) <= set(settings)]
    head = [corner, *settings, *(f"{second} − {first}" for first, second in pairs)]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        cells = [shown(row.sample(setting)) if setting in row.values else "" for setting in settings]
        for first, second in pairs:
            both = first in row.values and second in row.values
            cells.append(difference(row.difference(first, second)) if both else "")
        lines.append(_line([row.name, *cells]))
    return "\n".join(lines) + "\n"


def by_seed(rows: Mapping[str, Sequence[str]], seeds: Sequence[int], corner: str) -> str:
    """A line for each name, a column for each seed."""
    lines = [_line([corner, *(f"seed {seed}" for seed in seeds)]), _line(["---"] * (len(seeds) + 1))]
    lines += [_line([name, *cells]) for name, cells in rows.items()]
    return "\n".join(lines) + "\n"


def shown(sample: Sample) -> str:
    """Mean ± standard deviation, with the digits that its size deserves; without a spread where all seeds agree."""
    if sample.low == sample.high and sample.n > 1:
        return f"{sample.mean:,.4g}" if sample.mean < 1000 else f"{sample.mean:,.0f}"
    spread = "" if math.isnan(sample.sd) else f" ± {_digits(sample.sd, sample.mean)}"
    return f"{_digits(sample.mean, sample.mean)}{spread}"


def difference(found: Difference) -> str:
    """The mean difference and its 95 % interval; bold when that leaves out 0."""
    ends = [] if found.interval is None else [found.interval.low, found.interval.high]
    largest = max(map(abs, [found.value, *ends]))
    value = f"{'+' if found.value > 0 else ''}{_digits(found.value, largest)}" if largest else "0"
    if found.interval is None or not largest:
        return value
    text = f"{value} ({_digits(found.interval.low, largest)} to {_digits(found.interval.high, largest)})"
    return f"**{text}**" if found.exceeds_spread else text


def _digits(value: float, size: float) -> str:
    return f"{value:,.0f}" if abs(size) >= 1000 else f"{value:.1f}" if abs(size) >= 20 else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
