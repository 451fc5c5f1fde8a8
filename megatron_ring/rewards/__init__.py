"""Verifiable rewards: one verifier per file, run in killable processes; batch scorers, which score many responses at once.
Imports neither torch nor megatron."""

from megatron_ring.rewards.interface import Reward, ScoreRequest, Verifier
from megatron_ring.rewards.pool import RewardPool
from megatron_ring.rewards.registry import VERIFIERS, score, verifier_for
from megatron_ring.rewards.scorer import Scorer

__all__ = ["VERIFIERS", "Reward", "RewardPool", "ScoreRequest", "Scorer", "Verifier", "score", "verifier_for"]
