"""Generation against full forward passes of the training path, alone and under every layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_ring.config import ParallelConfig, SamplingConfig
from megatron_ring.presets import RING_TINY
from tests.layouts import LAYOUTS

EOS = 3


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(4, 300, (2 + 3 * i % 17,), generator=generator).tolist() for i in range(count)]


def make(parallel: ParallelConfig, sharpness: float = 4.0) -> tuple[Any, Any]:
    """A tiny random model whose head is scaled up, so that its distributions are far from uniform."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context

    here = context.initialize(parallel, RING_TINY, seed=0)
    model = build_model(RING_TINY, here)
    initialize_weights(model, seed=11)
    if here.last_stage:
        with torch.no_grad():
            model.output_layer.weight.mul_(sharpness)
    return model, here


def full_forward(model: Any, sequences: list[list[int]]) -> list[torch.Tensor]:
    """Logits of each sequence by the packed training forward, one process."""
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages

    lengths = [len(s) for s in sequences]
    positions = torch.cat([torch.arange(length) for length in lengths])
    tokens = torch.tensor([token for s in sequences for token in s])
    logits = forward_all_stages(model, tokens, PackedLayout(positions, lengths))
    assert logits is not None
    return list(logits.split(lengths))


def generate(model: Any, here: Any, sampling: SamplingConfig, count: int, new: int) -> list[Any]:
    from megatron_ring.sampler.requests import GenerationRequest, request_seed
    from megatron_ring.sampler.sampler import Sampler

    requests = [GenerationRequest(p, request_seed(9, i), new) for i, p in enumerate(prompts(count))]
    mine = requests[here.data_rank :: here.data_size]
    return Sampler(model, here, sampling, EOS).generate(mine)


def greedy_and_sampled() -> dict[str, float]:
    from megatron_ring.model.logprobs import token_statistics

    model, here = make(ParallelConfig())
    asked = prompts(13)
    greedy = generate(model, here, SamplingConfig(temperature=0.0, max_batch=5, max_new_tokens=24), 13, 24)
    wrong = 0
    logits = full_forward(model, [p + c.tokens for p, c in zip(asked, greedy, strict=True)])
    for prompt, completion, rows in zip(asked, greedy, logits, strict=True):
        for i, token in enumerate(completion.tokens):
            wrong += int(rows[len(prompt) + i - 1].argmax()) != token
    sampled = generate(model, here, SamplingConfig(temperature=0.8, max_batch=4, max_new_tokens=24), 13, 24)
    logits = full_forward(model, [p + c.tokens for p, c in zip(asked, sampled, strict=True)])
    difference = 0.0
    for prompt, completion, rows in zip(asked, sampled, logits, strict=True):
        at = rows[len(prompt) - 1 : -1]
        trained = token_statistics(at, torch.tensor(completion.tokens), 0, 0.8)
        for found, wanted in ((completion.logprobs, trained.logprobs), (completion.entropies, trained.entropies)):
            difference = max(difference, (torch.tensor(found) - wanted).abs().max().item())
    stopped = sum(c.finish_reason == "stop" for c in sampled)
    assert all((c.tokens[-1] == EOS) == (c.finish_reason == "stop") for c in sampled)
    assert all(EOS not in c.tokens[:-1] for c in sampled)
    return {"wrong": wrong, "difference": difference, "tokens": sum(len(c.tokens) for c in greedy), "stopped": stopped}


@pytest.mark.distributed
def test_greedy_is_the_argmax_and_logprobs_are_the_training_forwards(run_on) -> None:
    (found,) = run_on(1, greedy_and_sampled)
    assert found["tokens"] > 100
    assert found["wrong"] == 0
    assert found["difference"] < 1e-5


def tokens_of_batches(batches: list[int]) -> list[list[list[int]]]:
    model, here = make(ParallelConfig())
    sampling = SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=20)
    return [[c.tokens for c in generate(model, here, replace(sampling, max_batch=size), 12, 20)] for size in batches]


@pytest.mark.distributed
def test_a_response_does_not_depend_on_its_batch(run_on) -> None:
    ((alone, some, all_),) = run_on(1, tokens_of_batches, [1, 5, 64])
    assert alone == some == all_


def sampled_under(parallel: ParallelConfig) -> tuple[int, list[tuple[list[int], list[float]]]]:
    model, here = make(parallel)
    completions = generate(model, here, SamplingConfig(max_batch=4, max_new_tokens=16), 9, 16)
    return here.data_rank, [(c.tokens, c.logprobs) for c in completions]


@pytest.mark.distributed
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_every_layout_samples_the_same(run_on, layout: str) -> None:
    processes, parallel = LAYOUTS[layout]
    ((_, alone),) = run_on(1, sampled_under, ParallelConfig())
    data_size = parallel.data(processes)
    for data_rank, found in run_on(processes, sampled_under, parallel):
        wanted = alone[data_rank::data_size]
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]
        for (_, a), (_, b) in zip(found, wanted, strict=True):
            assert torch.allclose(torch.tensor(a), torch.tensor(b), atol=2e-5)


def uneven_work() -> int:
    """EP=2 with nine prompts on rank 0's side and none on the other: both must finish."""
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig(expert=2))
    sampler = Sampler(model, here, SamplingConfig(max_batch=4, max_new_tokens=8), EOS)
    requests = [GenerationRequest(p, i, 8) for i, p in enumerate(prompts(9))] if here.data_rank == 0 else []
    return len(sampler.generate(requests))


@pytest.mark.distributed
def test_a_replica_without_work_takes_part(run_on) -> None:
    assert run_on(2, uneven_work) == [9, 0]
