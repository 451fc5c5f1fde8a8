"""Everything a report is made of, read once: the runs, the checkpoint choice, the two evaluations, the export."""

from __future__ import annotations

import json
import math
import platform
import struct
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from megatron_ring.analysis.comparison import Row, compare
from megatron_ring.analysis.read_run import (
    Epoch,
    Evaluation,
    Record,
    Run,
    epoch_checkpoints,
    number,
    read_evaluation,
    read_run,
    read_selection,
)
from megatron_ring.errors import UserError

PACKAGES = (
    "megatron-ring",
    "torch",
    "megatron-core",
    "transformers",
    "math-verify",
    "numpy",
    "transformer-engine",
)


@dataclass(frozen=True)
class Material:
    """The parts of one report; a part that was not given is None (or empty). `export` is the HF directory's summary."""

    pretrain: Run | None
    sft: Run | None
    epochs: list[Epoch]
    selection: Record | None
    rl: Run | None
    before: Evaluation | None
    after: Evaluation | None
    rows: list[Row]
    export: Export | None

    def start_tokens(self) -> float:
        """SFT tokens behind the RL start: up to the chosen checkpoint, or to the end without a choice; NaN unknown."""
        if self.sft is None:
            return math.nan
        if self.selection is not None:
            chosen = [epoch for epoch in self.epochs if epoch.checkpoint == self.selection["checkpoint"]]
            return chosen[0].tokens if chosen else math.nan
        return number(self.sft.metrics[-1], "tokens")

    def rl_tokens(self) -> float:
        """Tokens that carried gradient in RL, summed over the recorded steps; NaN when a step does not tell."""
        return sum(number(row, "tokens/trained") for row in self.rl.metrics) if self.rl else math.nan


@dataclass(frozen=True)
class Export:
    """A Hugging Face directory: config.json, parameters counted from the safetensors headers, file sizes in bytes."""

    path: Path
    config: Record
    parameters: int
    tensors: int
    files: dict[str, int]


def gather(
    pretrain: Path | None = None,
    sft: Path | None = None,
    rl: Path | None = None,
    before: Path | None = None,
    after: Path | None = None,
    export: Path | None = None,
) -> Material:
    """Read what is given; raises UserError when a given directory lacks its files."""
    sft_run = read_run(sft) if sft else None
    before_evaluation = read_evaluation(before) if before else None
    after_evaluation = read_evaluation(after) if after else None
    return Material(
        pretrain=read_run(pretrain) if pretrain else None,
        sft=sft_run,
        epochs=epoch_checkpoints(sft_run) if sft_run else [],
        selection=read_selection(sft) if sft else None,
        rl=read_run(rl) if rl else None,
        before=before_evaluation,
        after=after_evaluation,
        rows=compare(before_evaluation, after_evaluation),
        export=read_export(export) if export else None,
    )


def read_export(path: Path) -> Export:
    """Summary of an exported Hugging Face directory; weights are counted from the headers, not loaded."""
    if not (path / "config.json").is_file():
        raise UserError(f"{path / 'config.json'}: no such file; give the directory that tools/convert_hf.py export wrote")
    try:
        config = json.loads((path / "config.json").read_bytes())
    except ValueError as error:
        raise UserError(f"{path / 'config.json'}: not JSON ({error}); export again") from None
    shapes = [shape for file in sorted(path.glob("*.safetensors")) for shape in _safetensors_shapes(file)]
    files = {entry.name: entry.stat().st_size for entry in sorted(path.iterdir()) if entry.is_file()}
    return Export(path, config, sum(math.prod(shape) for shape in shapes), len(shapes), files)


def _safetensors_shapes(path: Path) -> list[list[int]]:
    """Shapes from a safetensors header: eight bytes of little-endian length, then JSON."""
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
            return [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        except (struct.error, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: not a safetensors file ({error}); export again") from None


def versions() -> dict[str, str]:
    """Versions installed where the report is written (the packages are not imported)."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
