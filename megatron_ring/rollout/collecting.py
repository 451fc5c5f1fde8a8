"""The responses of a step: sampled until whole groups hold what it trains on, scored meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_ring.config.rl import RLConfig
from megatron_ring.data.prompts import PromptStream, StreamPrompt
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.rollout.pool import RolloutPool
from megatron_ring.rollout.records import Rollout, ScoredRollout
from megatron_ring.rollout.sampling import OpenRollout, open_rollouts, sample_rollouts
from megatron_ring.rollout.scoring import RolloutScorer
from megatron_ring.rollout.select import missing, usable_tokens
from megatron_ring.run.phases import Phases
from megatron_ring.sampler.sampler import Sampler


@dataclass(frozen=True)
class CollectedStep:
    """A step's scored responses, equal on every rank but for the tokens that other replicas hold.

    Attributes:
        step: 0-based; the version of the weights.
        scored: by prompt and sample.
        prompts: of these, by their position in the stream.
        generated_tokens: sampled in this step, also for responses that are not finished.
        unfinished: figures of the responses that C3PO++ carries over; empty without it.
    """

    step: int
    scored: list[ScoredRollout]
    prompts: dict[int, StreamPrompt]
    rounds: int
    generated_tokens: int
    unfinished: dict[str, int]

    @property
    def rewards(self) -> list[float]:
        return [item.reward for item in self.scored]

    @property
    def groups(self) -> list[tuple[str, str, list[float]]]:
        """Domain and id of the prompt and the rewards of each group, in order."""
        groups: dict[int, tuple[str, str, list[float]]] = {}
        for item in self.scored:
            rollout = item.rollout
            groups.setdefault(rollout.prompt_index, (rollout.domain, rollout.prompt_id, []))[2].append(item.reward)
        return list(groups.values())


class Collector:
    """Collects the responses of one step after another. `pool` holds what C3PO++ leaves for later steps."""

    def __init__(
        self, config: RLConfig, stream: PromptStream, sampler: Sampler, tokenizer: RingTokenizer, phases: Phases
    ) -> None:
        self.config, self.stream, self.sampler, self.tokenizer = config, stream, sampler, tokenizer
        self.phases = phases
        self.pool = RolloutPool()

    def open(self, prompts: Sequence[StreamPrompt]) -> list[OpenRollout]:
        """The responses to prompts, before anything of them is sampled."""
        config = self.config
        return open_rollouts(
            prompts, self.tokenizer, samples=config.samples_per_prompt, seed=config.seed,
            max_new_tokens=config.sampling.max_new_tokens, instruction=config.data.instruction,
        )  # fmt: skip

    def collect(self, step: int, scorer: RolloutScorer, budget: int | None) -> CollectedStep:
        """Sample rounds until whole groups hold what the 0-based `step` trains on (`missing` says what), and score them.

        A round has `prompts_per_step` prompts under way, new ones in the place of whole groups. With `max_cuts` it ends as
        soon as whole groups hold the budget, and what is unfinished stays in the pool.

        Raises:
            UserError: `config.budget.max_rounds` rounds of new prompts do not suffice; says what was sampled.
        """
        config, pool = self.config, self.pool
        continued = sum(item.length > 0 for item in pool.open)
        groups = pool.take_whole()
        scored = [item for group in groups for item in group.finished]
        rounds = generated = new_prompts = 0
        while rounds == 0 or (shortage := missing(config, scored, budget)):
            new_prompts += config.prompts_per_step - len(pool)
            if new_prompts > config.budget.max_rounds * config.prompts_per_step:
                raise UserError(
                    f"step {step + 1}: {rounds} round(s) of {config.prompts_per_step} prompts x "
                    f"{config.samples_per_prompt} samples gave {shortage}"
                )
            with self.phases("sample"):
                pool.add(self.open(self.stream.take(config.prompts_per_step - len(pool), step)))
                rollouts, tokens = self._sample(step, scorer, scored, budget)
            with self.phases("reward"):
                pool.finish(scorer.finish(rollouts))
            whole = pool.take_whole()
            groups += whole
            scored += [item for group in whole for item in group.finished]
            generated += tokens
            rounds += 1
        self.sampler.rest()  # what follows passes through the model without the cache
        scored.sort(key=lambda item: (item.rollout.prompt_index, item.rollout.sample))
        prompts = {group.prompt.position: group.prompt for group in groups}
        return CollectedStep(step, scored, prompts, rounds, generated, self._end_step(continued))

    def _sample(
        self, step: int, scorer: RolloutScorer, scored: list[ScoredRollout], budget: int | None
    ) -> tuple[list[Rollout], int]:
        """Sample the pool's open responses, where `scored` are those of whole groups so far: the responses that are finished
        by it, and the number of tokens sampled."""
        pool, wanted = self.pool, None
        if budget is not None and self.config.budget.max_cuts is not None:
            wanted = budget - usable_tokens(self.config, scored, budget)
        before = sum(item.length for item in pool.open)
        scorer.start()
        rollouts, still_open = sample_rollouts(
            self.sampler, pool.open, version=step, token_budget=wanted, held_tokens=pool.held_tokens(),
            on_rollout=scorer.submit,
        )  # fmt: skip
        pool.set_open(still_open)
        after = sum(item.length for item in still_open) + sum(rollout.response_length for rollout in rollouts)
        return rollouts, after - before

    def _end_step(self, continued: int) -> dict[str, int]:
        """Count one more cut for what is unfinished and drop what has too many; the figures of `CollectedStep.unfinished`.
        `continued`: responses that this step took up."""
        if self.config.budget.max_cuts is None:
            return {}
        dropped, dropped_tokens = self.pool.count_cut(self.config.budget.max_cuts)
        lengths = [item.length for item in self.pool.open if item.length]
        return {"continued": continued, "dropped": dropped, "dropped_tokens": dropped_tokens, "responses": len(lengths),
                "tokens": sum(lengths), "waiting": len(self.pool.finished)}  # fmt: skip
