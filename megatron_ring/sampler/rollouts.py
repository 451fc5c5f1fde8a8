"""From prompts to rollouts: K requests per prompt, dealt to data-parallel replicas, gathered again in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_ring.data.prompts import StreamPrompt
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.parallel import collectives
from megatron_ring.rl.records import Rollout
from megatron_ring.sampler.requests import Completion, GenerationRequest, request_seed
from megatron_ring.sampler.sampler import Sampler


def sample_rollouts(
    sampler: Sampler,
    prompts: Sequence[StreamPrompt],
    tokenizer: RingTokenizer,
    *,
    samples: int,
    seed: int,
    version: int,
    instruction: str | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_rollout: Callable[[Rollout, PromptRecord], None] | None = None,
) -> list[Rollout]:
    """`samples` responses to each prompt, on every rank, ordered by prompt and sample.

    A response's seed comes from (seed, prompt's position in the stream, sample): the rollouts do not depend on the number
    of replicas. Each replica takes every data-size-th prompt, all its samples. `on_rollout` is given each of this replica's
    own rollouts as soon as it is whole, while others are still being sampled.
    """
    context = sampler.context
    mine = prompts[context.data_rank :: context.data_size]
    tokens = [tokenizer.prompt_tokens(prompt.record.prompt, instruction) for prompt in mine]
    asked = [(i, k) for i in range(len(mine)) for k in range(samples)]
    seeds = [request_seed(seed, mine[i].position, k) for i, k in asked]
    requests = [
        GenerationRequest(tokens[i], number, sampler.sampling.max_new_tokens)
        for (i, _), number in zip(asked, seeds, strict=True)
    ]

    def rollout(index: int, completion: Completion) -> Rollout:
        i, k = asked[index]
        assert completion.finish_reason is not None
        return Rollout(
            prompt_index=mine[i].position,
            sample=k,
            prompt_id=mine[i].record.id,
            domain=mine[i].record.domain,
            prompt_tokens=tokens[i],
            response_tokens=completion.tokens,
            logprobs=completion.logprobs,
            entropies=completion.entropies,
            finish_reason=completion.finish_reason,
            version=version,
            seed=seeds[index],
        )

    def finished(index: int, completion: Completion) -> None:
        if on_rollout is not None:
            on_rollout(rollout(index, completion), mine[asked[index][0]].record)

    completions = sampler.generate(requests, version=version, on_progress=on_progress, on_finished=finished)
    rollouts = [rollout(index, completion) for index, completion in enumerate(completions)]
    everyone = [rollout for part in collectives.gather_over_data(rollouts) for rollout in part]
    return sorted(everyone, key=lambda rollout: (rollout.prompt_index, rollout.sample))
