"""Rewards for rollouts: each data-parallel replica scores its own, beside the sampling of others; all get all rewards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from megatron_ring.config.rewards import RewardConfig
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.schedule import PromptSource
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.rewards import Reward, RewardPool, Scorer, ScoreRequest
from megatron_ring.rewards.composition import read_compositions
from megatron_ring.rewards.scorer import PendingReward, check_answers, verifiers_of
from megatron_ring.rollout.records import Rollout, ScoredRollout

_Key = tuple[int, int]  # prompt's position in the stream, sample


def check_prompts(sources: Iterable[PromptSource], config: RewardConfig, answers: bool = True) -> None:
    """Raise `UserError`, naming the prompt file, for a domain that has neither a verifier nor a composition; naming the
    line, for an answer that the domain's verifier cannot use, unless these are not to be checked."""
    compositions = {} if config.compositions is None else read_compositions(config.compositions)
    for source in sources:
        for domain in source.domains:
            try:
                verifiers_of(domain, compositions)
            except UserError as error:
                raise UserError(f"{source.path}: {error}") from None
        if answers:
            check_answers(source.answers(), compositions)


class RolloutScorer:
    """Scores rollouts as they come: `start`, `submit` while they are sampled, `finish`. All ranks call `finish`; the leaders
    of replicas alone hold a scorer."""

    def __init__(self, scorer: Scorer | None, tokenizer: RingTokenizer, context: ParallelContext) -> None:
        self._scorer, self._tokenizer, self._context = scorer, tokenizer, context
        self._pending: dict[_Key, PendingReward] = {}
        self._problem: str | None = None

    def start(self) -> None:
        """Before rollouts are sampled: forget those of a sampling that failed before its `finish`. Their keys may come
        again, as held-out prompts count from 0, too."""
        self._pending.clear()
        self._problem = None

    def submit(self, rollout: Rollout, record: PromptRecord) -> None:
        """Begin to score one of this replica's rollouts. Never raises: `finish` does, on every rank alike."""
        if self._scorer is None or self._problem is not None:
            return
        prompt = record.prompt if isinstance(record.prompt, str) else [vars(message) for message in record.prompt]
        text = self._tokenizer.decode(rollout.completion.tokens)
        request = ScoreRequest(record.domain, prompt, text, record.answer, rollout.response_length)
        try:
            self._pending[rollout.prompt_index, rollout.sample] = self._scorer.submit(request)
        except UserError as error:
            self._problem = f"prompt {record.id!r}: {error}"

    def finish(self, rollouts: Iterable[Rollout]) -> list[ScoredRollout]:
        """Wait for all rewards; the same list on every rank. `rollouts` are those of all replicas.

        Raises:
            UserError: a replica could not score.
        """
        rewards: dict[_Key, Reward] = {}
        try:
            if self._problem is None:
                rewards = {key: pending.result() for key, pending in self._pending.items()}
        except UserError as error:
            self._problem = str(error)
        everyone: dict[_Key, Reward] = {}
        for problem, part in collectives.gather_over_world((self._problem, rewards)):
            if problem is not None:
                raise UserError(problem)
            everyone |= part
        self._pending.clear()
        scored = []
        for rollout in rollouts:
            reward = everyone[rollout.prompt_index, rollout.sample]
            scored.append(ScoredRollout(rollout, reward.value, reward.reason, reward.detail))
        return scored


@contextmanager
def open_scorer(
    config: RewardConfig, domains: Iterable[str], tokenizer: RingTokenizer, context: ParallelContext
) -> Iterator[RolloutScorer]:
    """A scorer whose workers are up, for rollouts of these domains; its workers end with the context.

    Raises:
        UserError: on every rank, where a domain cannot be scored: unknown, or without what its verifier needs.
    """
    scorer, problem = None, None
    if context.leads_replica:
        try:
            pool = RewardPool(config.workers, config.time_limit, unsafe_code=config.unsafe_code)
            scorer = Scorer(pool, config.compositions)
            scorer.start(domains)
        except UserError as error:
            problem = str(error)
    try:
        problems = [found for found in collectives.gather_over_world(problem) if found is not None]
        if problems:
            raise UserError(problems[0])
        yield RolloutScorer(scorer, tokenizer, context)
    finally:
        if scorer is not None:
            scorer.close()
