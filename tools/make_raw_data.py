"""Raw rows in GSM8K's form (question; answer behind ####) from prompt files of whole number answers, with known faults.

Every tenth row comes twice, in another spelling; every twentieth has no answer; some held-out problems are among them. For
the tiny pipeline, whose curation is to take all of these out again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.cli import parse
from megatron_ring.data.files import read_prompts
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError, run_main


@dataclass(frozen=True, kw_only=True)
class RawOptions:
    """Raw rows from prompt files."""

    prompts: Path
    """Prompt file; its problems of mathematics are taken."""
    heldout: Path
    """Prompt file of the benchmark, of which some problems are mixed in."""
    mixed: int = 20
    """How many of those."""
    out: Path
    """File to write."""


def raw_rows(options: RawOptions) -> list[dict[str, str]]:
    """The rows. Raises `UserError` where there is no problem to take."""
    records = [record for record in read_prompts(options.prompts) if record.domain == "math"]
    held = [record for record in read_prompts(options.heldout) if record.domain == "math"][: options.mixed]
    if not records:
        raise UserError(f"--prompts {options.prompts}: no problem of the domain math in it")
    rows = []
    for number, record in enumerate([*records, *held]):
        answer = "I do not know." if number % 20 == 7 else f"We work it out.\n#### {record.answer}"
        row = {"question": str(record.prompt), "answer": answer}
        rows.append(row)
        if number % 10 == 3:
            rows.append({**row, "question": f"Problem {number}.  {record.prompt} "})
    return rows


def main() -> None:
    """Command line."""
    options = parse(RawOptions, "tools/make_raw_data.py", __doc__ or "")
    rows = raw_rows(options)
    write_atomically(options.out, (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    print(f"{len(rows):,} raw rows -> {options.out}")


if __name__ == "__main__":
    run_main(main)
