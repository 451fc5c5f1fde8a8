"""C3PO: the clipped policy loss over a fixed number of tokens, each with the same weight."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ring.algorithm.objective import Objective


class C3PO(Objective):
    """L = (1 / Phi) sum_{t in Psi} l_t with |Psi| = Phi (Ring-lite report, arXiv 2506.14731).

    Psi is what `budget.select_budget` selects, and T = Phi where the step holds as many tokens.
    """

    name = "c3po"
    summary = "mean over the token budget"
    has_budget = True

    def weights(self, lengths: Sequence[int]) -> list[float]:
        return [1.0] * len(lengths)
