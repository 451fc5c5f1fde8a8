"""Which checkpoint of a run is the last whole one. Of several processes rank 0 reads it (`collectives.from_main`)."""

from __future__ import annotations

from pathlib import Path


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The last whole checkpoint of a run, or None."""
    pointer = checkpoints / "latest"
    return checkpoints / pointer.read_text().strip() if pointer.exists() else None


def checkpoint_folder(source: Path) -> Path:
    """`source`; or, where it is a run's file `checkpoints/latest`, the checkpoint that it names now."""
    named = latest_checkpoint(source.parent) if source.name == "latest" and source.is_file() else None
    return source if named is None else named
