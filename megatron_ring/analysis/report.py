"""Writes the report of a pipeline: one self-contained report.html with its figures also as figures/*.png."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from megatron_ring.analysis import page, pretraining, responses, sections
from megatron_ring.analysis.material import gather
from megatron_ring.errors import UserError


def write_report(
    out: Path,
    pretrain: Path | None = None,
    sft: Path | None = None,
    rl: Path | None = None,
    before: Path | None = None,
    after: Path | None = None,
    export: Path | None = None,
    title: str = "Training report",
) -> Path:
    """Read what is given, write `out/report.html` and `out/figures/*.png` (replaced whole), return the page's path.

    Args:
        out: directory, made when absent.
        pretrain, sft, rl: run directories. before, after: evaluation directories of the RL start and the RL result.
        export: Hugging Face directory.

    Raises UserError when a given directory lacks its files or nothing is given. What is not given is left out with a
    note.
    """
    if not any((pretrain, sft, rl, before, after, export)):
        raise UserError("nothing to report: give at least one of --pretrain, --sft, --rl, --before, --after, --export")
    material = gather(pretrain, sft, rl, before, after, export)

    def add(name: str, drawing: bytes, caption: str) -> page.Html:
        _replace(out / "figures" / f"{name}.png", drawing)
        return page.figure(drawing, caption)

    body = page.join(
        [
            sections.header(material, title, datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")),
            sections.what_was_run(material),
            pretraining.pretraining(material.pretrain, add),
            sections.sft(material, add),
            sections.rl(material, add),
            sections.evaluation(material, add),
            responses.samples(material),
            responses.rollouts(rl),
            sections.export(material),
        ]
    )
    path = out / "report.html"
    _replace(path, page.document(title, body).encode("utf-8"))
    return path


def _replace(path: Path, content: bytes) -> None:
    """Write beside the target, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
