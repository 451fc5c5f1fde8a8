"""The objectives by the name that `--objective.name` gives them. A new one is a line here, and its own file."""

from __future__ import annotations

from megatron_ring.algorithm.c3po import C3PO
from megatron_ring.algorithm.dapo import DAPO
from megatron_ring.algorithm.dr_grpo import DrGRPO
from megatron_ring.algorithm.grpo import GRPO
from megatron_ring.algorithm.gspo import GSPO
from megatron_ring.algorithm.objective import Objective

_ALL: tuple[type[Objective], ...] = (
    C3PO,
    GRPO,
    DAPO,
    DrGRPO,
    GSPO,
)
OBJECTIVES = {objective.name: objective for objective in _ALL}


def make_objective(name: str, length_budget: int) -> Objective:
    """The objective of that name; `length_budget` (tokens) is the constant of those that have one."""
    return OBJECTIVES[name](length_budget)
