#!/usr/bin/env python
"""Say what this installation has, what will be used, what is missing and which command gets it.

    python tools/doctor.py [--json] [--no-smoke]

Exit status 0 when the default path works, 1 when it does not. Nothing is downloaded or changed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `tools` may be a package of someone else's in site-packages, so its name is for the type checker only; and `python -I`
# leaves this folder out of the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))
if TYPE_CHECKING:
    from tools import doctor_findings as findings
    from tools import doctor_probes as probes

    Report = dict[str, list[findings.Finding]]  # by section
else:
    import doctor_findings as findings
    import doctor_probes as probes

TORCH_SECONDS = 180.0  # torch from a slow network disk, and a GPU that wakes up
SMOKE_SECONDS = 300.0  # and megatron-core
# Imported by the mains, some only once a run has begun: a broken one must show before.
LIBRARIES = ("numpy", "yaml", "tyro", "rich", "safetensors", "tokenizers", "transformers", "math_verify", "matplotlib",
             "torch.utils.tensorboard")  # fmt: skip
STYLES: dict[findings.Status, str] = {"ok": "green", "missing": "yellow", "broken": "red", "unused": "dim"}


def examine(smoke: bool) -> Report:
    """Findings of every section, in order."""
    report: Report = {}
    in_child = [number for number, probe in enumerate(probes.PROBES) if probe.in_child]
    answers = torch_findings(in_child)
    for number, probe in enumerate(probes.PROBES):
        found = answers[number] if number in answers else probe.findings()
        report.setdefault(probe.section, []).extend(found)
    broken = [finding.name for group in report.values() for finding in group if finding.breaks]
    if not smoke:
        last = findings.Finding("Smoke check", "left out by --no-smoke", "unused")
    elif not findings.installed("torch"):
        last = findings.Finding("Smoke check", f"cannot run without {', '.join(broken)}", "unused")
    else:
        last = smoke_finding()
    report["Default path"] = [last]
    return report


def torch_findings(numbers: list[int]) -> dict[int, list[findings.Finding]]:
    """Findings of the probes that import torch, by their number. They run in a child: the import of a damaged library
    may end its process, or hang, and what was found before that still counts."""
    if not findings.installed("torch"):
        names = {number: probes.PROBES[number].name for number in numbers}
        return {number: [findings.Finding(name, "not known without torch", "unused")] for number, name in names.items()}
    output, wrong = findings.ask(child_command(*map(str, numbers)), TORCH_SECONDS)
    answers: dict[int, list[findings.Finding]] = {number: [] for number in numbers}
    for row in json_lines(output, "probe"):
        answers[row.pop("probe")].append(findings.Finding(**row))
    for number, found in answers.items():
        if not found:
            probe = probes.PROBES[number]
            hint = "pip install --force-reinstall torch"
            found.append(findings.Finding(probe.name, f"torch: {wrong or 'no answer'}", "broken", hint, probe.needed))
    return answers


def smoke_finding() -> findings.Finding:
    """The default path in small, in a child: seconds of each step, or what stopped it."""
    output, wrong = findings.ask(child_command("smoke"), SMOKE_SECONDS)
    took = ", ".join(f"{row['step']} {row['seconds']:.2f} s" for row in json_lines(output, "step"))
    if not wrong:
        return findings.Finding("Smoke check", took, "ok", needed=True)
    error = next((row["error"] for row in json_lines(output, "error")), wrong)
    value = error + (f" (worked before: {took})" if took else "")
    hint = "python tools/doctor.py --child smoke  (shows the whole error)"
    return findings.Finding("Smoke check", value, "broken", hint, True)


def child_command(*what: str) -> list[str]:
    return findings.python_command(str(Path(__file__).resolve()), "--child", *what)


def json_lines(output: str, key: str) -> Iterator[dict[str, Any]]:
    """Objects with `key` among the lines that a child printed: libraries print to stdout too."""
    for line in output.splitlines():
        if line.startswith(f'{{"{key}"'):
            yield json.loads(line)


def child(what: list[str]) -> None:
    """What a child process does: an object a line, each as soon as it is known."""
    if what != ["smoke"]:
        for number in map(int, what):
            for finding in probes.PROBES[number].findings():
                print(json.dumps({"probe": number, **asdict(finding)}), flush=True)
        return
    before = time.perf_counter()
    try:
        for step in smoke_steps():
            print(json.dumps({"step": step, "seconds": time.perf_counter() - before}), flush=True)
            before = time.perf_counter()
    except Exception as error:
        print(json.dumps({"error": findings.describe(error)}), flush=True)
        raise


def smoke_steps() -> Iterator[str]:
    """The default path in small; the name of each step when it is done."""
    for name in LIBRARIES:
        importlib.import_module(name)
    yield "libraries"
    sys.path.insert(0, str(findings.ROOT))
    from megatron_ring.parallel import prepare

    prepare()
    import megatron.core  # noqa: F401

    yield "megatron-core"
    import torch

    from megatron_ring.config.presets import get_preset
    from megatron_ring.config.stage import ModelOptions
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages
    from megatron_ring.parallel import collectives
    from megatron_ring.parallel import context as parallel_context
    from megatron_ring.run.stage import open_model

    shape = get_preset("ring-tiny")
    stage = open_model(ModelOptions(), shape)
    yield "ring-tiny"
    device = stage.context.device
    lengths = (24, 40)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    tokens = torch.randint(shape.vocab_size, (sum(lengths),), device=device)
    logits_tv = forward_all_stages(stage.model, tokens, PackedLayout(positions, lengths))
    if logits_tv is None or logits_tv.shape[0] != sum(lengths) or not bool(logits_tv.isfinite().all()):
        raise RuntimeError("the forward pass gave logits that are not all there, or not all finite")
    yield "forward"
    if collectives.sum_over_data(torch.ones(1, device=device)).item() != 1.0:
        raise RuntimeError("the all-reduce of one process changed its number")
    yield "all-reduce"
    parallel_context.shutdown()


def verdict(report: Report) -> str:
    """One line: whether the default path works, or what breaks it."""
    found = [finding for group in report.values() for finding in group]
    broken = [finding.name for finding in found if finding.breaks]
    if broken:
        return f"The default path does not work: {', '.join(broken)}."
    unchecked = "" if report["Default path"][0].status == "ok" else ", as far as looked at without the smoke check"
    return f"The default path works{unchecked}."


def as_json(report: Report) -> str:
    """{works, breaks: names, verdict, sections: {title: [{name, value, status, hint, needed}]}} as one line."""
    breaks = [finding.name for group in report.values() for finding in group if finding.breaks]
    sections = {title: [asdict(finding) for finding in group] for title, group in report.items()}
    return json.dumps({"works": not breaks, "breaks": breaks, "verdict": verdict(report), "sections": sections})


def show(report: Report) -> None:
    """A table, the commands that mend what is not there, and the verdict; plain text where rich is missing."""
    hints = [finding for group in report.values() for finding in group if finding.hint]
    width = max((len(finding.name) for finding in hints), default=0)
    # Commands are printed whole, not in a cell of the table: they are there to be copied.
    commands = "\n".join(f"  {finding.name:<{width}}  {finding.hint}" for finding in hints)
    try:
        show_table(report)
    except ImportError:
        for title, group in report.items():
            print(title)
            for finding in group:
                print(f"  {finding.name:<24} {finding.status:<8} {finding.value}")
    if hints:
        print(f"How to get or mend it:\n{commands}\n")
    print(verdict(report))


def show_table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("item", "", "found"):
        table.add_column(column, overflow="fold", no_wrap=column == "item")
    for title, group in report.items():
        table.add_row(Text(title, "bold cyan"))
        for finding in group:
            style = "bold red" if finding.breaks else STYLES[finding.status]
            table.add_row(Text(f"  {finding.name}"), Text(finding.status, style), Text(finding.value))
        table.add_section()
    console = Console()
    if not console.is_terminal:  # a file has no width: rich would fold at 80
        console = Console(width=140)
    console.print(table)
    console.print()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit status 0 when the default path works, 1 when it does not.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--no-smoke", action="store_true", help="leave out building and running a tiny model")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return 0
    report = examine(smoke=not args.no_smoke)
    if args.json:
        print(as_json(report))
    else:
        show(report)
    return int(any(finding.breaks for group in report.values() for finding in group))


if __name__ == "__main__":
    raise SystemExit(main())
