"""The objectives by the name that `--objective.name` gives them."""

from __future__ import annotations

from collections.abc import Callable

from megatron_ring.algorithm.c3po import C3PO
from megatron_ring.algorithm.dapo import DAPO
from megatron_ring.algorithm.dr_grpo import DrGRPO
from megatron_ring.algorithm.grpo import GRPO
from megatron_ring.algorithm.gspo import GSPO
from megatron_ring.algorithm.policy import Objective

_PLAIN: dict[str, Callable[[], Objective]] = {"c3po": C3PO, "grpo": GRPO, "dapo": DAPO, "gspo": GSPO}


def make_objective(name: str, length_budget: int) -> Objective:
    """The objective of that name; `length_budget` (tokens) is Dr. GRPO's constant."""
    return DrGRPO(length_budget) if name == "dr-grpo" else _PLAIN[name]()
