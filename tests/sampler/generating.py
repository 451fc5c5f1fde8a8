"""What tests of generation share: a tiny random model, prompts, and full forward passes of the training path."""

from __future__ import annotations

from typing import Any

import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.sampling import SamplingConfig

EOS = 3
TIGHT = SamplingConfig(max_batch=4, page_size=4, prefill_tokens=7, kv_tokens=64)


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


def groups(samples: list[int], new: int = 16) -> list[Any]:
    """Requests of as many prompts, each with its number of samples."""
    from megatron_ring.sampler.requests import GenerationRequest, request_seed

    asked = zip(prompts(len(samples)), samples, strict=True)
    return [GenerationRequest(p, request_seed(9, i, k), new) for i, (p, many) in enumerate(asked) for k in range(many)]
