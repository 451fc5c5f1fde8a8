"""How the token budget changes over a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

BudgetScheduleName = Literal["constant", "linear", "solve-rate"]

MEMORY = 0.9
SOLVED = 1.0


class BudgetSchedule:
    """Phi of each step: first + progress * (last - first), rounded.

    progress is 0 when "constant"; the share of steps done when "linear" (0 at the first step, 1 at the last); when
    "solve-rate" the share of responses solved (reward at least 1) in the steps before, as a running mean that starts at 0
    and keeps 0.9 of itself each step: the budget grows with the policy's ability, and shrinks when it is lost.

    Args:
        first, last: tokens at progress 0 and 1.

    Attributes:
        before: `first` and `last` of the schedule that this one goes on from; other ones where Phi counts per data-parallel
            rank and their number has changed.
    """

    def __init__(self, name: BudgetScheduleName, first: int, last: int) -> None:
        self.name, self.first, self.last = name, first, last
        self.solve_rate = 0.0
        self.before = first, last

    def tokens(self, step: int, steps: int) -> int:
        """Phi of the 0-based `step` out of `steps`."""
        progress = {"constant": 0.0, "linear": step / max(1, steps - 1), "solve-rate": self.solve_rate}[self.name]
        return round(self.first + min(1.0, progress) * (self.last - self.first))

    def observe(self, rewards: Sequence[float]) -> None:
        """Take note of a step's rewards, one for each response."""
        solved = sum(reward >= SOLVED for reward in rewards) / len(rewards)
        self.solve_rate = MEMORY * self.solve_rate + (1 - MEMORY) * solved

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, in types that JSON can hold."""
        return {"solve_rate": self.solve_rate, "first": self.first, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the schedule that wrote `state` stopped."""
        self.solve_rate = float(state["solve_rate"])
        # Older checkpoints have neither.
        self.before = int(state.get("first", self.first)), int(state.get("last", self.last))
