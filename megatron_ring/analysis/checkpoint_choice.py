"""Choice of the SFT checkpoint that RL starts from, by one of four rules (`RULES`). The report's is the entropy.

More SFT epochs lower the policy's entropy, and RL from a low-entropy start collapses earlier; a start whose entropy
is too high learns slowly. Checkpoints with a validation entropy in a band (paper: 0.3 to 0.5) did best, and among
those a well trained one did better than the one with the best validation score: so the latest checkpoint inside the
band is taken. Its other measure is token efficiency, RL tokens over SFT tokens. The two usual rules, lowest validation loss
and best score before RL, are there to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_ring.analysis.read_run import Epoch
from megatron_ring.errors import UserError

PAPER_BAND = (0.3, 0.5)
RULES = ("band", "token-efficiency", "validation", "score")


@dataclass(frozen=True)
class Choice:
    """The chosen checkpoint (directory name), its epoch and validation entropy, and why, in words."""

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
    ordered = _ordered(epochs)
    inside = [epoch for epoch in ordered if distance_to_band(epoch.entropy, band) == 0]
    if inside:
        chosen = inside[-1]
        return Choice(chosen.checkpoint, chosen.epoch, chosen.entropy, _reason_inside(chosen, inside, ordered, band))
    nearest = min(distance_to_band(epoch.entropy, band) for epoch in ordered)
    chosen = [epoch for epoch in ordered if distance_to_band(epoch.entropy, band) == nearest][-1]
    return Choice(chosen.checkpoint, chosen.epoch, chosen.entropy, _reason_outside(chosen, ordered, nearest, band))


def choose_by_loss(epochs: Sequence[Epoch]) -> Choice:
    """The checkpoint with the lowest validation loss (the earlier of equals). Raises UserError when there is none."""
    chosen = min(_ordered(epochs), key=lambda epoch: epoch.loss if math.isfinite(epoch.loss) else math.inf)
    reason = f"{_named(chosen)} has the lowest validation loss, {chosen.loss:.4f}, of {_count(epochs)}."
    return Choice(chosen.checkpoint, chosen.epoch, chosen.entropy, reason)


def choose_by_score(epochs: Sequence[Epoch], scores: Mapping[str, float]) -> Choice:
    """The checkpoint with the best score before RL (the earlier of equals), of those that `scores` (pass@1 by checkpoint)
    has. Raises UserError when it has none of them."""
    scored = [epoch for epoch in _ordered(epochs) if epoch.checkpoint in scores]
    if not scored:
        raise UserError("--evaluations: none is of an epoch checkpoint of --run; evaluate these first")
    chosen = max(scored, key=lambda epoch: scores[epoch.checkpoint])
    reason = f"{_named(chosen)} has the best pass@1 before RL, {scores[chosen.checkpoint]:.4f}, of {_count(scored)}."
    return Choice(chosen.checkpoint, chosen.epoch, chosen.entropy, reason)


def choose_by_ratio(epochs: Sequence[Epoch], rl_tokens: float, ratio: float) -> Choice:
    """The checkpoint whose token efficiency, the tokens that RL is to train over its SFT tokens, lies nearest to `ratio` by
    factor (the earlier of equals). Raises UserError when there is none, or one says nothing of its tokens."""
    ordered = _ordered(epochs)
    for epoch in ordered:
        if not epoch.tokens > 0:
            raise UserError(f"--run: metrics.jsonl says nothing of the tokens before {epoch.checkpoint}")
    chosen = min(ordered, key=lambda epoch: abs(math.log(rl_tokens / epoch.tokens / ratio)))
    found = rl_tokens / chosen.tokens
    reason = (
        f"{_named(chosen)} has a token efficiency of {found:.3g}, {rl_tokens:,.0f} RL tokens over {chosen.tokens:,.0f} SFT "
        f"tokens: the nearest to {ratio:.3g} of {_count(epochs)}."
    )
    return Choice(chosen.checkpoint, chosen.epoch, chosen.entropy, reason)


def _ordered(epochs: Sequence[Epoch]) -> list[Epoch]:
    if not epochs:
        raise UserError("--run: no epoch checkpoint to choose from; let SFT finish at least one epoch with validation on")
    return sorted(epochs, key=lambda epoch: epoch.step)


def _named(epoch: Epoch) -> str:
    return f"Epoch {epoch.epoch:g} ({epoch.checkpoint})"


def _count(epochs: Sequence[Epoch]) -> str:
    return "the only checkpoint" if len(epochs) == 1 else f"{len(epochs)} checkpoints"


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
