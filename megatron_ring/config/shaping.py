"""Configuration of what becomes of rewards before they are advantages. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ring.config.checks import require


@dataclass(frozen=True)
class ShapingConfig:
    """Rewards before they become advantages; metrics and rollouts have them as they were. All of it is off by default."""

    normalise: Literal["none", "running"] = "none"
    """running: bring each domain's rewards to mean 0 and standard deviation 1, both over the run so far, so that domains of
    other scales weigh alike. Within a group --objective.std does it already."""
    length_weight: float = 0.0
    """What the shortest response of a group gains on the longest; nothing on the group's mean (default: off)."""
    length_domains: tuple[str, ...] = ()
    """Domains whose responses are compared by length (default: all)."""

    def __post_init__(self) -> None:
        require(self.length_weight >= 0, f"--shaping.length-weight is {self.length_weight}, below 0")
        require(
            not self.length_domains or self.length_weight > 0,
            "--shaping.length-domains: nothing is compared by length without --shaping.length-weight",
        )

    @property
    def changes(self) -> bool:
        """Whether any reward becomes another."""
        return self.normalise != "none" or self.length_weight > 0
