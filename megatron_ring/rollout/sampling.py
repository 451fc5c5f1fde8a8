"""From prompts to rollouts: K requests per prompt, dealt to data-parallel replicas. Of all responses every rank learns how
long they are and what ended them; their tokens stay with the replica that sampled them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_ring.data.prompts import StreamPrompt
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.garbage import collector_paused
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.rollout.handover import hand_over
from megatron_ring.rollout.records import Rollout
from megatron_ring.sampler.completion import Completion
from megatron_ring.sampler.requests import GenerationRequest, request_seed
from megatron_ring.sampler.sampler import Sampler


@dataclass(frozen=True)
class OpenRollout:
    """A response that is not finished: not begun, or as far as `request.begun` says, which has its tokens at `holder` alone.

    Attributes:
        sample: which of the prompt's responses this is, from 0.
        cuts: updates of the weights since its first token.
        holder: the data-parallel rank that sampled what there is of it.
    """

    prompt: StreamPrompt
    sample: int
    request: GenerationRequest
    cuts: int = 0
    holder: int = 0

    @property
    def length(self) -> int:
        """Tokens sampled so far."""
        return self.request.begun.length

    def rollout(self, completion: Completion) -> Rollout:
        """The response that `completion`, which is finished, makes of it."""
        return Rollout(
            prompt_index=self.prompt.position,
            sample=self.sample,
            prompt_id=self.prompt.record.id,
            domain=self.prompt.record.domain,
            prompt_tokens=self.request.prompt_tokens,
            seed=self.request.seed,
            completion=completion,
            holder=self.holder,
        )


@collector_paused()
def open_rollouts(
    prompts: Sequence[StreamPrompt], tokenizer: RingTokenizer, *, samples: int, seed: int, max_new_tokens: int,
    instruction: str | None = None,
) -> list[OpenRollout]:  # fmt: skip
    """`samples` responses to each prompt, to be sampled. A response's seed comes from (seed, prompt's position in the
    stream, sample): its tokens do not depend on what is sampled beside it."""
    opened, nothing = [], Completion()  # one for all: an evaluation may have a hundred thousand requests
    for prompt in prompts:
        tokens = tokenizer.prompt_tokens(prompt.record.prompt, instruction)
        for sample in range(samples):
            request = GenerationRequest(tokens, request_seed(seed, prompt.position, sample), max_new_tokens, nothing)
            opened.append(OpenRollout(prompt, sample, request))
    return opened


def sample_rollouts(
    sampler: Sampler,
    to_sample: Sequence[OpenRollout],
    *,
    version: int,
    token_budget: int | None = None,
    held_tokens: Mapping[int, int] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_rollout: Callable[[Rollout, PromptRecord], None] | None = None,
) -> tuple[list[Rollout], list[OpenRollout]]:
    """Sample what is open; on every rank the finished responses and those still open, ordered by prompt and sample. Each
    has its tokens where it was sampled.

    Each replica takes every data-size-th prompt, all its responses, with what others have sampled of them.

    Args:
        to_sample: ordered by prompt: earlier ones go first.
        version: of the weights.
        token_budget: stop as soon as the groups whose responses are all finished hold so many tokens, over all replicas
            (None: finish all).
        held_tokens: by prompt position, tokens of a group's responses that were finished before.
        on_progress: told the number of this replica's finished responses.
        on_rollout: given each of this replica's own rollouts as soon as it is whole, while others are being sampled.
    """
    context = sampler.context
    to_sample = _assigned(to_sample, context)
    own = [item for item in to_sample if item.holder == context.data_rank]
    whole = _WholeGroups(own, held_tokens or {})

    def take(index: int, completion: Completion) -> None:
        item = own[index]
        whole.add(item.prompt.position, len(completion.tokens))
        if on_rollout is not None:
            on_rollout(item.rollout(completion), item.prompt.record)

    completions = sampler.generate(
        [item.request for item in own], version=version, token_budget=token_budget, counted=lambda: whole.tokens,
        on_progress=on_progress, on_finished=take,
    )  # fmt: skip
    completions_of = [iter(part) for part in collectives.gather_over_data([one.without_tokens() for one in completions])]
    completions_of[context.data_rank] = iter(completions)
    finished, unfinished = [], []
    for item in to_sample:
        completion = next(completions_of[item.holder])
        if completion.finish_reason is not None:
            finished.append(item.rollout(completion))
        else:
            unfinished.append(dataclasses.replace(item, request=item.request.continued(completion)))
    finished.sort(key=lambda rollout: rollout.key)
    return finished, sorted(unfinished, key=lambda item: (item.prompt.position, item.sample))


@collector_paused()
def _assigned(to_sample: Sequence[OpenRollout], context: ParallelContext) -> list[OpenRollout]:
    """The same responses, each held by the replica that goes on with it."""
    place = {position: i for i, position in enumerate(dict.fromkeys(item.prompt.position for item in to_sample))}
    takers = [place[item.prompt.position] % context.data_size for item in to_sample]
    begun = hand_over([item.request.begun for item in to_sample], [item.holder for item in to_sample], takers, context)
    return [
        item
        if item.holder == taker and item.request.begun is completion
        else dataclasses.replace(item, request=item.request.continued(completion), holder=taker)
        for item, completion, taker in zip(to_sample, begun, takers, strict=True)
    ]


class _WholeGroups:
    """Counts the tokens of groups whose responses are all finished."""

    def __init__(self, to_sample: Sequence[OpenRollout], held_tokens: Mapping[int, int]) -> None:
        self.tokens = 0
        self._open = Counter(item.prompt.position for item in to_sample)
        self._tokens = Counter(held_tokens)

    def add(self, position: int, length: int) -> None:
        self._tokens[position] += length
        self._open[position] -= 1
        if not self._open[position]:
            self.tokens += self._tokens[position]
