"""What the jobs of a study cost: how long each ran, and how many shared the machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_ring.analysis.read_run import is_number
from megatron_ring.errors import UserError

MARK = "finished.json"


@dataclass(frozen=True)
class JobTime:
    """Seconds that a job ran, from the start of its process to its end, and the processes side by side at most."""

    seconds: float
    beside: int

    @property
    def share(self) -> float:
        """Seconds of the machine, where all processes side by side share it alike."""
        return self.seconds / self.beside


def job_time(folder: Path) -> JobTime | None:
    """Of the finished job whose folder this is; None where nothing says so. Raises `UserError` for a broken mark."""
    file = folder / MARK
    if not file.is_file():
        return None
    try:
        mark = json.loads(file.read_bytes())
        seconds, beside = mark.get("seconds"), mark.get("beside")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not the mark of a finished job ({error}); remove it and run the study again") from None
    if not is_number(seconds) or not is_number(beside) or not math.isfinite(seconds) or beside < 1:
        return None  # written before jobs were timed
    return JobTime(float(seconds), int(beside))


def cost_table(times: Mapping[str, list[JobTime | None]]) -> str:
    """A line for each kind of job and one for all: processes, their minutes, and their share of the machine's."""
    lines = ["| jobs | processes | minutes of processes | minutes of the machine |", "| --- | --- | --- | --- |"]
    known = {kind: [time for time in each if time is not None] for kind, each in times.items()}
    if not any(known.values()):
        return "No times were recorded.\n"
    together = [time for found in known.values() for time in found]
    for kind, each in {**known, "all": together}.items():
        minutes, shared = sum(time.seconds for time in each) / 60, sum(time.share for time in each) / 60
        lines.append(f"| {kind} | {len(each)} | {minutes:.1f} | {shared:.1f} |")
    beside = sorted({time.beside for time in together})
    said = f"Up to {' or '.join(map(str, beside))} processes ran side by side; each counts for its part of the machine."
    missing = sum(time is None for each in times.values() for time in each)
    untold = f" Of {missing} job(s) no time was recorded." if missing else ""
    return "\n".join(lines) + f"\n\n{said}{untold}\n"
