"""Metrics in Weights & Biases, where it is installed and asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import secrets
from pathlib import Path
from typing import Any

from megatron_ring.config.checks import require
from megatron_ring.config.operations import WandbConfig
from megatron_ring.data.writing import write_atomically


def check_wandb(config: WandbConfig) -> None:
    """Raise `UserError` when it is asked for and not installed."""
    missing = config.project is not None and importlib.util.find_spec("wandb") is None
    require(not missing, "--wandb.project: wandb is not installed: run `pip install wandb`, or leave the flag out")


class WandbLog:
    """One run there; a continued run goes on with the same. Steps are logged as an own axis: a run that goes back writes
    some of them again."""

    def __init__(self, config: WandbConfig, folder: Path, settings: dict[str, Any]) -> None:
        """`folder`: the run directory, which keeps the run's id. `settings`: the resolved configuration."""
        wandb = importlib.import_module("wandb")
        known = folder / "wandb.json"
        run_id = json.loads(known.read_text())["id"] if known.exists() else secrets.token_hex(4)
        write_atomically(known, (json.dumps({"id": run_id}) + "\n").encode())
        self._run = wandb.init(
            project=config.project, name=config.name or folder.resolve().name, id=run_id, resume="allow",
            dir=str(folder), config=settings,
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: dict[str, Any]) -> None:
        """Numbers of one step, `step` among them."""
        self._run.log({name: value for name, value in metrics.items() if isinstance(value, int | float)})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
