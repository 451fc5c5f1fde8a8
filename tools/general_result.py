#!/usr/bin/env python
"""What an evaluation of the small general tasks came to: win rate, rules and reasoning, with intervals -> general.json.

    python tools/general_result.py --evaluation runs/x/before --prompts runs/x/data/general_heldout_all.jsonl

A response to an open task wins against the teacher's answer of its row where its planted quality is greater; a tie counts
half. The planted quality is what preferences were drawn from. The reward model, which only saw the preferences, is not asked
here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_ring.analysis.read_run import read_jsonl
from megatron_ring.analysis.statistics import bootstrap_mean
from megatron_ring.config.cli import parse
from megatron_ring.data.files import read_prompts
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError, run_main
from megatron_ring.toy.general import KINDS, quality

MEASURES = ("win rate", "quality", "answers", "rules", "reasoning")
# What of `MEASURES` rewards tell: those of a kind of general task, and of all other problems.
_BY_KIND = {"answer": "answers", "rules": "rules"}


@dataclass(frozen=True)
class Flags:
    """One evaluation."""

    evaluation: Path
    """Folder of the evaluation, with samples.jsonl."""
    prompts: Path
    """The prompt file that it asked, of tools/make_general_data.py."""


def main(flags: Flags) -> None:
    found = measured(flags.evaluation, flags.prompts)
    write_atomically(flags.evaluation / "general.json", (json.dumps(found, indent=1) + "\n").encode())
    said = ", ".join(f"{name} {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for name, one in found.items())
    print(f"{flags.evaluation}: {said}")


def measured(evaluation: Path, prompts: Path) -> dict[str, dict[str, float]]:
    """Each of `MEASURES`: `value`, its 95 % interval `low` and `high` by bootstrap over prompts, and `prompts`.

    Raises:
        UserError: a response to no prompt of the file, or a measure without one.
    """
    records = {(record.domain, record.id): record for record in read_prompts(prompts)}
    values: dict[str, dict[str, list[float]]] = {name: {} for name in MEASURES}
    for sample in read_jsonl(evaluation / "samples.jsonl"):
        record = records.get((sample["domain"], sample["id"]))
        if record is None:
            raise UserError(f"{evaluation / 'samples.jsonl'}: {sample['id']!r} is no prompt of {prompts}")
        for name, value in _values(record.metadata, sample):
            values[name].setdefault(f"{record.domain}/{record.id}", []).append(value)
    empty = next((name for name in MEASURES if not values[name]), None)
    if empty is not None:
        raise UserError(f"{prompts}: no prompt that tells the {empty}: give a file of tools/make_general_data.py")
    return {name: _estimate(by_prompt) for name, by_prompt in values.items()}


def _values(metadata: Mapping[str, Any], sample: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What one response says, by measure."""
    kind = metadata.get("family")
    if kind != "open":
        return [(_BY_KIND[kind] if kind in KINDS else "reasoning", float(sample["reward"]))]
    own, other = (quality(metadata["best"], text) for text in (sample["response"], metadata["opponent"]))
    return [("quality", own), ("win rate", (own > other) + (own == other) / 2)]


def _estimate(by_prompt: Mapping[str, list[float]]) -> dict[str, float]:
    means = [fmean(samples) for samples in by_prompt.values()]
    interval = bootstrap_mean(means)
    return {"value": fmean(means), "low": interval.low, "high": interval.high, "prompts": len(means)}


if __name__ == "__main__":
    run_main(lambda: main(parse(Flags, "general_result.py", (__doc__ or "").split("\n")[0], sys.argv[1:])))
