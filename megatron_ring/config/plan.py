"""What a dry run plans for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_ring.config.checks import require
from megatron_ring.config.metadata import NOT_RECORDED


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """The machine that --dry-run plans for."""

    world: int | None = None
    """GPUs of the planned run, all nodes together (default: the processes of this launch)."""
    memory: float = 80.0
    """Memory of a GPU (GB of 10^9 bytes)."""
    preset: str | None = None
    """Model shape by name, for a dry run whose checkpoint is not there yet."""

    def __post_init__(self) -> None:
        require(self.world is None or self.world >= 1, f"--plan.world is {self.world}, below 1")
        require(0 < self.memory < float("inf"), f"--plan.memory is {self.memory}, not a number of GB")


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """The settings of a main that can be planned."""

    dry_run: bool = field(default=False, metadata=NOT_RECORDED)
    """Check the whole configuration, print layout, token arithmetic and memory of a GPU, and stop. Needs no GPU."""
    plan: PlanConfig = field(default_factory=PlanConfig, metadata=NOT_RECORDED)
