"""Verifiable instructions: the 25 kinds of IFEval (Zhou et al. 2023, arXiv:2311.07911) under their public names and
arguments, and some of our own under `ring:`. One file per family; `scoring` puts them together.

Verdicts are those of the public checker apart from what the checks' docstrings say. Everything is linear in the response.
"""

from megatron_ring.rewards.instructions.finding import Check, Finding
from megatron_ring.rewards.instructions.scoring import CHECKS, judge, prepare, quick_score, read_task, score

__all__ = ["CHECKS", "Check", "Finding", "judge", "prepare", "quick_score", "read_task", "score"]
