"""Choice of the SFT checkpoint that RL starts from, by entropy (Ring-lite report, finding on SFT epochs).

More SFT epochs lower the policy's entropy, and RL from a low-entropy start collapses earlier; a start whose entropy
is too high learns slowly. Checkpoints with a validation entropy in a band (paper: 0.3 to 0.5) did best, and among
those a well trained one did better than the one with the best validation score: so the latest checkpoint inside the
band is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_ring.analysis.read_run import Epoch
from megatron_ring.errors import UserError

PAPER_BAND = (0.3, 0.5)


@dataclass(frozen=True)
class Choice:
    """The chosen checkpoint (directory name), its epoch and validation entropy, and one sentence saying why."""

    checkpoint: str
    epoch: float
    entropy: float
    reason: str


def distance_to_band(entropy: float, band: tuple[float, float]) -> float:
    """How far an entropy lies outside the band; 0 inside it, both ends included."""
    return max(band[0] - entropy, entropy - band[1], 0.0)


def choose_checkpoint(epochs: Sequence[Epoch], band: tuple[float, float] = PAPER_BAND) -> Choice:
    """The latest checkpoint whose validation entropy lies in `band`, or the nearest to it (the later one of equals).

    Raises UserError when there is no epoch checkpoint or the band is empty.
    """
    low, high = band
    if not 0 <= low <= high:
        raise UserError(f"--entropy-low {low:g} --entropy-high {high:g}: need 0 <= low <= high")
    if not epochs:
        raise UserError("--run: no epoch checkpoint to choose from; let SFT finish at least one epoch with validation on")
    ordered = sorted(epochs, key=lambda epoch: epoch.step)
    inside = [epoch for epoch in ordered if distance_to_band(epoch.entropy, band) == 0]
    if inside:
        chosen = inside[-1]
        return Choice(chosen.checkpoint, chosen.epoch, chosen.entropy, _reason_inside(chosen, inside, ordered, band))
    nearest = min(distance_to_band(epoch.entropy, band) for epoch in ordered)
    chosen = [epoch for epoch in ordered if distance_to_band(epoch.entropy, band) == nearest][-1]
    return Choice(chosen.checkpoint, chosen.epoch, chosen.entropy, _reason_outside(chosen, ordered, nearest, band))


def _reason_inside(chosen: Epoch, inside: list[Epoch], ordered: list[Epoch], band: tuple[float, float]) -> str:
    rank = "the only checkpoint" if len(inside) == 1 else f"the latest of {len(inside)} checkpoints"
    reason = (
        f"Epoch {chosen.epoch:g} ({chosen.checkpoint}) has validation entropy {chosen.entropy:.3f} and is {rank} "
        f"inside the band {band[0]:g}–{band[1]:g}"
    )
    better = [epoch for epoch in ordered if epoch.loss < chosen.loss]
    if better:
        best = min(better, key=lambda epoch: epoch.loss)
        reason += f"; the lowest validation loss, {best.loss:.3f}, was at epoch {best.epoch:g}, but the band decides"
    return reason + "."


def _reason_outside(chosen: Epoch, ordered: list[Epoch], distance: float, band: tuple[float, float]) -> str:
    values = [epoch.entropy for epoch in ordered]
    spread = f"{min(values):.3f}" if len(values) == 1 else f"{min(values):.3f} to {max(values):.3f}"
    count = "the only checkpoint" if len(values) == 1 else f"all {len(values)} checkpoints"
    side = (
        "below it, so RL may explore too little: expect early collapse, or train fewer epochs"
        if chosen.entropy < band[0]
        else "above it, so RL may learn slowly: train more epochs or raise the band"
    )
    return (
        f"No checkpoint lies in the band {band[0]:g}–{band[1]:g} (validation entropy of {count}: {spread}); "
        f"the nearest is epoch {chosen.epoch:g} ({chosen.checkpoint}) with {chosen.entropy:.3f}, {distance:.3f} {side}."
    )
