"""The page of bench_node.py: figures beside the memory plan, scaling, and others' published rates. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from megatron_ring.config.declarations import parameter_counts
from megatron_ring.config.presets import get_preset

if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
    from tools.node_parts import Part, Sizes, planned_gib
else:
    from node_parts import Part, Sizes, planned_gib

Results = Mapping[str, Mapping[str, Any]]
# Tokens/s/GPU end to end in RL, as published; parameters in all and active of one token (billions).
PUBLISHED = (
    ("NeMo-RL 0.6, Qwen3-30B-A3B, 32 H100, 4k, on-policy", 1102, 30.5, 3.3),
    ("NeMo-RL 0.6, the same, one step off-policy", 1414, 30.5, 3.3),
    ("Ring-lite's report, 256 H800, responses of some 12k", 600, 16.8, 2.75),
)


def page(chosen: Sequence[Part], results: Results, preset: str, sizes: Sizes) -> str:
    """Markdown."""
    done = {name: row["figures"] for name, row in results.items() if row["ended"] == "well"}
    text = [
        f"# {preset}, by `tools/bench_node.py`",
        "",
        "## Parts",
        "",
        "| part | processes | ended | s | |",
        "|---|---|---|---|---|",
    ]
    for part in chosen:
        row = results.get(part.name)
        ended, seconds = (row["ended"], f"{row['seconds']:.0f}") if row else ("not run", "")
        text.append(f"| {part.name} | {part.processes} | {ended} | {seconds} | {summary(done.get(part.name, {}))} |")
    for lines in (memory_lines(chosen, done, sizes), scaling_lines(chosen, done), rate_lines(chosen, done, preset)):
        text += ["", *lines] if lines else []
    return "\n".join(text) + "\n"


def summary(figures: Mapping[str, Any]) -> str:
    """The figures that are looked at first."""
    if "tflops" in figures:
        return (f"{figures['tflops']:.4g} TFLOP/s a GPU, {100 * figures['mfu']:.0f} % of the product; "
                f"{figures['tokens_per_second']:,.0f} tokens/s")  # fmt: skip
    if "of_floor" in figures:
        rate, share = figures["tokens_per_second"], 100 * figures["of_floor"]
        return f"{rate:,.0f} tokens/s a data-parallel rank, {share:.0f} % of the floor"
    if "time/step" in figures:
        phases = [
            f"{name[5:]} {value:.3g}" for name, value in figures.items() if name.startswith("time/") and value >= 0.005
        ]
        saved = f"; checkpoint of {figures['checkpoint_gb']:.3g} GB in {figures['checkpoint_seconds']:.3g} s" if (
            "checkpoint_gb" in figures) else ""  # fmt: skip
        return f"{figures['throughput/tokens_per_second']:,.0f} tokens/s; last step's seconds: {', '.join(phases)}{saved}"
    if "backend" in figures:
        size, row = [item for item in figures.items() if item[0] != "backend"][-1]
        return f"{figures['backend']}, {size}, GB/s: " + ", ".join(f"{name} {rate:.3g}" for name, rate in row.items())
    return ""


def memory_lines(chosen: Sequence[Part], done: Mapping[str, Any], sizes: Sizes) -> list[str]:
    """Peaks of training against their plan, allocated by torch, of the process that reports."""
    rows = []
    for part in chosen:
        figures = done.get(part.name, {})
        peak = figures.get("peak_memory_gib")
        if "tflops" not in figures or peak is None or part.layout is None:
            continue
        planned = planned_gib(part.preset, part.layout, part.processes, sizes, part.recompute, part.moments)
        rows.append(f"| {part.name} | {part.recompute} | {planned:.1f} | {peak:.1f} | {100 * (peak / planned - 1):+.1f} % |")
    head = ["## Memory, GiB", "", "| part | recomputed | planned | measured | |", "|---|---|---|---|---|"]
    return [*head, *rows] if rows else []


def scaling_lines(chosen: Sequence[Part], done: Mapping[str, Any]) -> list[str]:
    """Tokens/s for each GPU against one GPU, each GPU with as many tokens: weak scaling."""
    rates = {part.name: done[part.name]["tokens_per_second"] / part.processes
             for part in chosen if part.name.startswith("scale-") and part.name in done}  # fmt: skip
    alone = rates.get("scale-1-dp")
    if alone is None or len(rates) < 2:
        return []
    rows = [f"| {name} | {rate:,.0f} | {100 * rate / alone:.1f} % |" for name, rate in rates.items()]
    return ["## Weak scaling of the slice", "", "| part | tokens/s/GPU | of one GPU |", "|---|---|---|", *rows]


def rate_lines(chosen: Sequence[Part], done: Mapping[str, Any], preset: str) -> list[str]:
    """End to end in RL of the whole model, beside what others have published, and what makes the numbers comparable."""
    found = [(part, done[part.name]) for part in chosen if part.name == "rl" and part.name in done]
    if not found or preset != "ring-lite":
        return []
    part, figures = found[0]
    ours = figures["throughput/tokens_per_second"] / part.processes
    total, active = (count / 1e9 for count in parameter_counts(get_preset(preset))[:2])
    text = [
        "## RL end to end", "",
        f"Ours: {ours:,.0f} tokens/s/GPU ({preset}: {total:.3g} B parameters, {active:.3g} B active).", "",
        "A token of theirs costs more or less work than one of ours: in training by the active parameters, in decoding by",
        "up to all parameters, which are read. The last two columns are our rate on their model, were that all that",
        "differs.", "",
        "| published | tokens/s/GPU | ours by active parameters | ours by all parameters |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, rate, theirs, theirs_active in PUBLISHED:
        text.append(f"| {name} | {rate:,} | {ours * active / theirs_active:,.0f} | {ours * total / theirs:,.0f} |")
    return text
