"""Rewards for rollouts: each data-parallel replica scores its own, by verifiers while others are sampled, then by batch
scorers; all get all rewards."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from megatron_ring.config.operations import AlarmConfig
from megatron_ring.config.rewards import RewardConfig
from megatron_ring.data.records import Message, PromptRecord
from megatron_ring.data.schedule import PromptSource
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.rewards import Reward, RewardPool, Scorer, ScoreRequest
from megatron_ring.rewards.batch import BATCH_SCORERS, BatchScorer, EagerScorer, load_batch_scorer
from megatron_ring.rewards.composition import read_compositions
from megatron_ring.rewards.scorer import PendingReward, check_answers, check_domain, check_settings, scorers_of
from megatron_ring.rollout.hacking import repetition
from megatron_ring.rollout.records import Key, Rollout, ScoredRollout
from megatron_ring.sampler.sampler import Sampler


@dataclass(frozen=True)
class ScorerResources:
    """What a batch scorer may use, the same on all ranks of a replica.

    Attributes:
        sampler: holds the policy's model, and is idle while responses are scored; its cache is there until the step's last
            round. None where the caller has none.
        config: of the rewards.
        folder: where what was paid for may be kept; None: nowhere.
        shared: what batch scorers of a run have in common, by a name of theirs.
    """

    context: ParallelContext
    tokenizer: RingTokenizer
    sampler: Sampler | None
    config: RewardConfig
    folder: Path | None = None
    shared: dict[str, Any] = field(default_factory=dict)


def check_prompts(
    sources: Iterable[PromptSource], config: RewardConfig, answers: bool = True, whole_groups: bool = True
) -> None:
    """Raise `UserError`, naming the prompt file, for a domain that cannot be scored; naming the line, for an answer that the
    domain's verifier cannot use, unless these are not to be checked. `whole_groups`: whether rounds sample all responses to
    a prompt."""
    compositions = {} if config.compositions is None else read_compositions(config.compositions)
    for source in sources:
        for domain in source.domains:
            try:
                check_domain(domain, compositions, whole_groups)
                check_settings(domain, compositions, config)
            except UserError as error:
                raise UserError(f"{source.path}: {error}") from None
        if answers:
            check_answers(source.answers(), compositions)


def idle(domains: Iterable[str], config: RewardConfig, alarms: AlarmConfig) -> list[str]:
    """What to say of a reward model and of a judge that score none of these domains, and of alarms that nothing can set
    off."""
    compositions = {} if config.compositions is None else read_compositions(config.compositions)
    names = set(domains)
    asked = {name for domain in names for name in scorers_of(domain, compositions)}
    judges = {name for name in BATCH_SCORERS if name.startswith("judge")}
    held_out = any(not part.weight for domain in names & compositions.keys() for part in compositions[domain].parts)
    told = {
        "--rewards.reward-model: scores no prompt, no domain names it": config.reward_model is not None
        and "reward-model" not in asked,
        "--rewards.judge: judges no prompt, no domain names it": config.judge.given and not asked & judges,
        "--alarms.rule-gap: never goes off, no domain has a part of weight 0": alarms.rule_gap is not None and not held_out,
        "--alarms.judge-disagreement: never goes off without --rewards.judge.again": alarms.judge_disagreement is not None
        and not config.judge.again,
    }
    return [line for line, holds in told.items() if holds]


def _turn(message: Message) -> dict[str, str]:
    """A message as verifiers and judges see it: `Message` again by its fields."""
    return {name: value for name, value in vars(message).items() if value or name in ("role", "content")}


class RolloutScorer:
    """Scores rollouts as they come: `start`, `submit` while they are sampled, `finish`. All ranks hold one and make all
    calls alike; verifiers work for the leaders of replicas alone."""

    def __init__(
        self, scorer: Scorer, batch_scorers: Mapping[str, BatchScorer], tokenizer: RingTokenizer, context: ParallelContext
    ) -> None:
        self._scorer, self._batch_scorers = scorer, batch_scorers
        self._tokenizer, self._context = tokenizer, context
        if context.leads_replica:
            eager = {name: one for name, one in batch_scorers.items() if isinstance(one, EagerScorer)}
            scorer.on_waiting = {name: one.begin for name, one in eager.items()}
        self._pending: dict[Key, PendingReward] = {}
        self._repetition: dict[Key, float] = {}
        self._ready: queue.SimpleQueue[Key] = queue.SimpleQueue()
        self._problem: str | None = None

    def start(self) -> None:
        """Before rollouts are sampled: forget those of a sampling that failed before its `finish`. Their keys may come
        again, as held-out prompts count from 0, too."""
        self._pending.clear()
        self._repetition.clear()
        self._ready = queue.SimpleQueue()  # workers may still tell the old one
        for name in self._batch_scorers:
            self._scorer.take_waiting(name)
        self._problem = None

    def submit(self, rollout: Rollout, record: PromptRecord) -> None:
        """Begin to score one of this replica's rollouts. Never raises: `finish` does, on every rank alike."""
        if self._problem is not None or not (self._context.leads_replica or self._batch_scorers):
            return
        prompt = record.prompt if isinstance(record.prompt, str) else [_turn(message) for message in record.prompt]
        text = self._tokenizer.decode(rollout.completion.tokens)
        request = ScoreRequest(record.domain, prompt, text, record.answer, rollout.response_length)
        try:
            self._pending[rollout.key] = self._scorer.submit(request, rollout.key)
            self._repetition[rollout.key] = repetition(rollout.completion.tokens)
            self._pending[rollout.key].when_done(partial(self._ready.put, rollout.key))
        except UserError as error:
            self._problem = f"prompt {record.id!r}: {error}"

    def take_ready(self) -> Iterator[tuple[Key, Reward, float]]:
        """Rewards of this replica that have come since the last call, with how much the response repeats. Never raises."""
        while self._problem is None and not self._ready.empty():
            key = self._ready.get()
            try:
                yield key, self._pending[key].result(), self._repetition[key]
            except UserError as error:
                self._problem = str(error)

    def finish(self, rollouts: Iterable[Rollout]) -> list[ScoredRollout]:
        """Wait for all rewards; the same list on every rank. `rollouts` are those of all replicas.

        Raises:
            UserError: a replica could not score.
        """
        own: dict[Key, tuple[Reward, float]] = {}
        try:
            self._ask_where_rules_cannot_tell()
            self._score_batches()
            if self._problem is None and self._context.leads_replica:
                own = {key: (pending.result(), self._repetition[key]) for key, pending in self._pending.items()}
        except UserError as error:
            self._problem = str(error)
        rewards: dict[Key, tuple[Reward, float]] = {}
        for problem, of_rank in collectives.gather_over_world((self._problem, own)):
            if problem is not None:
                raise UserError(problem)
            rewards |= of_rank
        self._pending.clear()
        scored = []
        for rollout in rollouts:
            reward, repeated = rewards[rollout.key]
            scored.append(ScoredRollout(rollout, reward.value, reward.reason, reward.detail, repeated))
        return scored

    def _ask_where_rules_cannot_tell(self) -> None:
        """Parts with rules: those that no rule decides go to their own domain, on every rank of the replica alike. A failure
        is kept as the problem, so that all ranks go on to the batch scorers."""
        if not self._scorer.has_rules:
            return
        open_ones: dict[Key, list[str]] = {}
        if self._problem is None and self._context.leads_replica:
            try:
                open_ones = {key: pending.settle_rules() for key, pending in self._pending.items()}
            except UserError as error:
                self._problem = str(error)
        for of_rank in collectives.gather_over_world(open_ones):
            for key in of_rank.keys() & self._pending.keys():
                self._scorer.ask(self._pending[key], of_rank[key])

    def _score_batches(self) -> None:
        """Ask every batch scorer, in the same order on every rank, also a rank that has nothing for it."""
        for name, batch_scorer in self._batch_scorers.items():
            waiting = self._scorer.take_waiting(name)
            rewards = batch_scorer.score([item for item, _ in waiting])
            for (_, promise), reward in zip(waiting, rewards, strict=True):
                promise.set_result(reward)


@contextmanager
def open_scorer(
    config: RewardConfig, domains: Iterable[str], tokenizer: RingTokenizer, context: ParallelContext,
    sampler: Sampler | None = None, folder: Path | None = None,
) -> Iterator[RolloutScorer]:  # fmt: skip
    """A scorer whose workers are up, for rollouts of these domains; its workers end with the context. `sampler` and
    `folder`: as of `ScorerResources`.

    Raises:
        UserError: on every rank, where a domain cannot be scored: unknown, or without what its verifier needs.
    """
    scorer, names, problem = None, set[str](), None
    try:
        pool = (
            RewardPool(config.workers, config.time_limit, unsafe_code=config.unsafe_code) if context.leads_replica else None
        )
        scorer = Scorer(pool, config.compositions)
        names = scorer.start(domains)
    except UserError as error:
        problem = str(error)
    try:
        _settle(problem)
        assert scorer is not None
        resources = ScorerResources(context, tokenizer, sampler, config, folder)
        batch_scorers = {name: load_batch_scorer(name, resources) for name in sorted(names & BATCH_SCORERS.keys())}
        yield RolloutScorer(scorer, batch_scorers, tokenizer, context)
    finally:
        if scorer is not None:
            scorer.close()


def _settle(problem: str | None) -> None:
    """Raise, on every rank, the problem of any."""
    problems = [other for other in collectives.gather_over_world(problem) if other is not None]
    if problems:
        raise UserError(problems[0])
