"""The picture of bench_sampler.py: a run over time, tokens per second beside the floor, and sequences in flight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

BINS = 150


class Turn(NamedTuple):
    """A step of the sampler: seconds from the run's start to its end, those it took, the least it could have taken, tokens
    it sampled, sequences that it decoded, and forward passes that only decoded."""

    end: float
    seconds: float
    floor: float
    tokens: int
    decoding: int
    passes: int


def by_rows(turns: Sequence[Turn]) -> list[dict[str, float]]:
    """Of the passes that only decode, by the number of rows (up to each power of two): how many, and the milliseconds that
    one takes and could take at the least."""
    found: dict[int, list[Turn]] = {}
    for turn in turns:
        if turn.passes:
            found.setdefault(1 << (turn.decoding - 1).bit_length(), []).append(turn)
    table = []
    for rows, part in sorted(found.items()):
        passes = sum(turn.passes for turn in part)
        measured, floor = (1e3 * sum(getattr(turn, name) for turn in part) / passes for name in ("seconds", "floor"))
        table.append({"rows_at_most": rows, "passes": passes, "pass_ms": measured, "pass_floor_ms": floor})
    return table


def binned(turns: Sequence[Turn], bins: int = BINS) -> tuple[list[float], dict[str, list[float]]]:
    """Edges of the bins in seconds, n + 1 for up to `bins` bins with as many steps each, and of each bin: tokens per second
    over its steps' time (`measured`) and over their floor (NaN where they had nothing to do, beside ranks that had), and the
    mean of sequences decoded together (`decoding`)."""

    def rate(tokens: int, seconds: float) -> float:
        return tokens / seconds if seconds else math.nan

    count = min(bins, len(turns))
    parts = [turns[len(turns) * i // count : len(turns) * (i + 1) // count] for i in range(count)]
    rates = {
        "measured": [rate(sum(t.tokens for t in part), sum(t.seconds for t in part)) for part in parts],
        "floor": [rate(sum(t.tokens for t in part), sum(t.floor for t in part)) for part in parts],
        "decoding": [sum(t.decoding for t in part) / len(part) for part in parts],
    }
    return [turns[0].end - turns[0].seconds, *(part[-1].end for part in parts)], rates


def draw(path: Path, out: dict[str, Any], turns: Sequence[Turn]) -> None:
    """Write it. `out`: what bench_sampler.py prints."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    edges, rates = binned(turns)
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    flight = axes.twinx()
    flight.stairs(rates["decoding"], edges, fill=True, color="#d9dde2", label="sequences in flight (right)")
    flight.set_ylim(bottom=0)
    flight.set_ylabel("sequences decoded together")
    axes.set_zorder(flight.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.stairs(rates["floor"], edges, baseline=None, color="#d55e00", linestyle="--", label="floor")
    axes.stairs(rates["measured"], edges, baseline=None, color="#0072b2", label="measured")
    for name, rate in out.get("transformers", {}).items():
        axes.axhline(rate["decode_tokens_per_second"], color="#009e73", linestyle=":", label=f"transformers {name}, decode")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds of the last timed run")
    axes.set_ylabel("tokens/s")
    handles, labels = axes.get_legend_handles_labels()
    more = flight.get_legend_handles_labels()
    axes.legend([*handles, *more[0]], [*labels, *more[1]], fontsize=8, loc="upper right")
    axes.set_title(
        f"{out['preset']}, {out['layers']} layers, {out['precision']}, {out['prompts']} x {out['samples']}: "
        f"{out['ring']['decode_of_floor']:.0%} of the floor in decoding",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
