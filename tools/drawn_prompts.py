"""What the tools that draw problems share: check where to write, draw with a progress bar, write the file whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_ring.data.files import PromptRecord, write_prompts
from megatron_ring.errors import UserError


def check_output(out: Path, count: int) -> None:
    """Raise `UserError` for a file or a count that cannot work."""
    if count < 1:
        raise UserError(f"--count {count}: ask for at least 1 prompt")
    if out.suffix not in (".jsonl", ".parquet") or out.is_dir():
        raise UserError(f"--out {out}: name a file .jsonl or .parquet")


def write_drawn(out: Path, count: int, drawn: Iterator[PromptRecord]) -> str:
    """Write `count` prompts as they are drawn; the file appears whole or not at all. Returns how many of which domains."""
    columns = (TextColumn("drawn"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    records: list[PromptRecord] = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=count)
        for record in drawn:
            records.append(record)
            progress.advance(bar)
    write_prompts(out, records)
    return f"{out}: {len(records)} prompts of {', '.join(sorted({record.domain for record in records}))}"
