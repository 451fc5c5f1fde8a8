#!/usr/bin/env python
"""The language head beside its bare matrix products: time and memory of loss, log-probabilities, entropies and gradients.
Prints one JSON object.

    python tools/bench_head.py --tokens 32768
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class BenchHead:
    """What is measured."""

    preset: str = "ring-lite"
    """Model shape whose hidden size and vocabulary are taken."""
    tokens: int = 32_768
    """Tokens that count in the loss."""
    repeats: int = 10
    """Timed calls of each."""
    entropy: bool = False
    """Give the entropies a gradient, too, as an entropy bonus does."""
    chunk_tokens: int | None = None
    """Tokens whose logits are made at a time; default: the head's own choice."""

    def __post_init__(self) -> None:
        require(self.tokens >= 1, f"--tokens is {self.tokens}, below 1")
        require(self.chunk_tokens is None or self.chunk_tokens >= 1, f"--chunk-tokens is {self.chunk_tokens}, below 1")
        require(self.repeats >= 1, f"--repeats is {self.repeats}, below 1")


def main(config: BenchHead) -> None:
    prepare()
    import torch

    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.parallel.device import has_cuda

    shape = replace(get_preset(config.preset), num_layers=1, num_experts=8)
    here = context.initialize(ParallelConfig(), shape, 0)
    dtype = torch.bfloat16 if has_cuda() else torch.float32
    head = build_model(shape, here, dtype=dtype).output_layer
    if config.chunk_tokens is not None:
        head.chunk_logits = config.chunk_tokens * head.weight.shape[0]
    device = here.device
    hidden = torch.randn(config.tokens, 1, shape.hidden_size, device=device).to(dtype).requires_grad_()
    with torch.no_grad():
        head.weight.normal_(0.0, 0.02)
    rows = torch.arange(config.tokens, device=device)
    targets = torch.randint(shape.vocab_size, (config.tokens,), device=device)

    def token_loss(logprobs: torch.Tensor, entropies: torch.Tensor, _part: slice) -> torch.Tensor:
        loss = -logprobs.sum()
        return loss - 1e-3 * entropies.sum() if config.entropy else loss

    def ours() -> None:
        hidden.grad = head.weight.grad = None
        head.loss(hidden, rows, targets, 1.0, token_loss).backward()

    x_th, weight_vh = hidden.detach()[:, 0], head.weight.detach()
    held = [x_th[:4096] @ weight_vh.t()]
    times = {"products": _median_ms(lambda: _products(x_th, weight_vh, held[0]), config.repeats)}
    held.clear()
    ours()
    hidden.grad = head.weight.grad = None
    grown = None
    if has_cuda():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        ours()
        grown = (torch.cuda.max_memory_allocated() - before) / 1e9
    times["head"] = _median_ms(ours, config.repeats)
    flops = 6.0 * config.tokens * weight_vh.numel()
    rates = {f"{name}_tflops": flops / ms / 1e9 for name, ms in times.items()}
    out = {
        "tokens": config.tokens, "hidden": shape.hidden_size, "vocabulary": shape.vocab_size, "precision": str(dtype)[6:],
        "entropy_gradient": config.entropy, "chunk_tokens": head.chunk_tokens(has_cuda()), "milliseconds": times, **rates,
        "head_over_products": times["head"] / times["products"], "memory_growth_gb": grown,
    }  # fmt: skip
    print(json.dumps(out), flush=True)


def _products(x_th: torch.Tensor, weight_vh: torch.Tensor, logits_cv: torch.Tensor) -> None:
    """The three products of every chunk, results thrown away; `logits_cv` has room for those of one."""
    import torch

    for part in x_th.split(len(logits_cv)):
        torch.mm(part, weight_vh.t(), out=logits_cv[: len(part)])
        torch.mm(logits_cv[: len(part)], weight_vh)
        torch.mm(logits_cv[: len(part)].t(), part)


def _median_ms(work: Callable[[], None], repeats: int) -> float:
    """Median time of a call, after two for warming up."""
    import time

    from megatron_ring.parallel.device import synchronize

    work()
    work()
    times = []
    for _ in range(repeats):
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchHead, "bench_head", "The language head beside its bare matrix products.")))
