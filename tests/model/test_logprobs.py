"""Vocab-parallel log-probs and entropy against a float64 full softmax, with gradients."""

from __future__ import annotations

import pytest
import torch

from megatron_ring.config import ParallelConfig
from megatron_ring.presets import RING_TINY


def differences(parallel: ParallelConfig, temperature: float, scale: float) -> dict[str, float]:
    from megatron_ring.model.logprobs import logprobs_and_entropy
    from megatron_ring.parallel import context

    here = context.initialize(parallel, RING_TINY, seed=0)
    generator = torch.Generator().manual_seed(1)
    tokens, vocab = 57, 512
    whole = torch.randn(tokens, vocab, generator=generator, dtype=torch.float64) * scale
    whole[3] = 0.0  # uniform
    whole[4, 100] = 80.0  # nearly certain
    targets = torch.randint(vocab, (tokens,), generator=generator)
    targets[4] = 100
    weights = torch.randn(2, tokens, generator=generator, dtype=torch.float64)

    oracle = whole.clone().requires_grad_()
    log_p = torch.log_softmax(oracle / temperature, dim=-1)
    expected = log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    (expected[0] * weights[0] + expected[1] * weights[1]).sum().backward()

    part = whole.float().chunk(parallel.tensor, dim=1)[here.tensor_rank].clone().requires_grad_()
    found = logprobs_and_entropy(part, targets, here.tensor_rank, temperature)
    (found[0] * weights[0].float() + found[1] * weights[1].float()).sum().backward()
    wanted_grad = oracle.grad.chunk(parallel.tensor, dim=1)[here.tensor_rank]
    return {
        "logprobs": (found[0].double() - expected[0]).abs().max().item(),
        "entropy": (found[1].double() - expected[1]).abs().max().item(),
        "gradient": (part.grad.double() - wanted_grad).abs().max().item(),
    }


@pytest.mark.distributed
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_agree_with_float64(run_on, tensor: int, temperature: float, scale: float) -> None:
    for found in run_on(tensor, differences, ParallelConfig(tensor=tensor), temperature, scale):
        assert found["logprobs"] < 2e-5 and found["entropy"] < 2e-5, found
        assert found["gradient"] < 2e-5, found
