"""Batch scorers: what scores many responses at once, because it compares them or because it owns a model.

A verifier looks at one response, in a process of its own, while others are being sampled. A batch scorer is asked once after
each round of sampling, on every rank, for all responses that the rank's replica holds. Domains and parts of compositions
name both alike. A new one is its own file and a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.judged import REFERENCES
from megatron_ring.rewards.registry import verifier_for


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One response of a batch.

    Attributes:
        request: as a verifier would get it.
        group: equal for the responses to one prompt.
        sample: which of these it is, from 0.
    """

    request: ScoreRequest
    group: int
    sample: int


class BatchScorer(Protocol):
    """Scores responses together."""

    def score(self, items: Sequence[BatchItem]) -> list[Reward]:
        """A reward for each response, in order.

        All ranks call it together, so it may use collectives and models that are split over ranks. The ranks of a replica
        bring the same responses, by group and sample; another replica's are others, or none.

        Raises:
            UserError: it cannot score at all; that ends the run.
        """
        ...


@runtime_checkable
class EagerScorer(Protocol):
    """A batch scorer that can begin before the round is sampled, as what it waits for is not this machine."""

    def begin(self, item: BatchItem) -> None:
        """One of this rank's responses is there. Told while others are sampled, on the leaders of replicas alone; `score`
        is asked for it later, unless the sampling fails. Never raises: `score` does."""
        ...


@dataclass(frozen=True, slots=True)
class BatchScorerEntry:
    """What is known of a batch scorer before it is loaded.

    Attributes:
        implementation: MODULE:CLASS. It is loaded when a run needs it, and may lie in a room that imports torch. The class
            is called with `rollout.scoring.ScorerResources`.
        whole_groups: whether it compares the responses of a group, so that a round must hold all of them.
        needs: settings of `RewardConfig`, by their dotted names, one of which must be given; empty where none must.
        check_reference: as of `Verifier`.
    """

    implementation: str
    whole_groups: bool = False
    needs: tuple[str, ...] = ()
    check_reference: Callable[[Any], object] | None = None


def _judge(name: str, whole_groups: bool = False) -> BatchScorerEntry:
    return BatchScorerEntry(
        f"megatron_ring.rollout.judge_scorer:{name}", whole_groups, ("judge.checkpoint", "judge.url"),
        check_reference=REFERENCES.get(name),
    )  # fmt: skip


BATCH_SCORERS: dict[str, BatchScorerEntry] = {
    "group/diversity": BatchScorerEntry("megatron_ring.rewards.diversity:Diversity", whole_groups=True),
    "judge": _judge("ScoreJudge"),
    "judge/rubric": _judge("RubricJudge"),
    "judge/reference": _judge("ReferenceJudge"),
    "judge/pairwise": _judge("PairwiseJudge", whole_groups=True),
    "reward-model": BatchScorerEntry("megatron_ring.reward_models.policy_scorer:RewardModelScorer", needs=("reward_model",)),
}


def load_batch_scorer(name: str, resources: object) -> BatchScorer:
    """The batch scorer of this name. Raises what building it does."""
    module, _, attribute = BATCH_SCORERS[name].implementation.partition(":")
    scorer: BatchScorer = getattr(importlib.import_module(module), attribute)(resources)
    return scorer


def reference_check(name: str) -> Callable[[Any], object] | None:
    """`check_reference` of a verifier or batch scorer. Raises `UserError` when there is none of this name."""
    if name in BATCH_SCORERS:
        return BATCH_SCORERS[name].check_reference
    return verifier_for(name).check_reference
