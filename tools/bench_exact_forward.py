"""The forward pass of training by the kernels of --exact and by the usual ones, for `bench_exact.py`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from megatron_ring.config.model import ModelConfig

if TYPE_CHECKING:
    import torch

_STEPS = 6  # the first one warms up


def forward(shape: ModelConfig, layers: int, context_length: int, train_rows: int) -> list[dict[str, Any]]:
    """The same step of `layers` layers and the head both ways, and how far its log-probabilities are from each other."""
    import torch

    shape = replace(shape, num_layers=layers)
    lengths = [context_length] * (train_rows // context_length)
    tokens = torch.randint(shape.vocab_size, (sum(lengths),), device="cuda")
    (usual, p), (mine, q) = (_one_way(shape, tokens, lengths, exact) for exact in (False, True))
    return [
        {
            "name": name, "tokens": len(tokens), "exact_ms": mine[i], "usual_ms": usual[i],
            "exact_over_usual": mine[i] / usual[i], "logprob_abs_mean": (p - q).abs().mean().item(),
        }
        for i, name in enumerate(("layers", "layers and head"))
    ]  # fmt: skip


def _one_way(shape: ModelConfig, tokens: torch.Tensor, lengths: list[int], exact: bool) -> tuple[list[float], torch.Tensor]:
    """Median milliseconds of the layers, and of layers and head; and the log-probabilities of `tokens`, fp64."""
    import torch

    from megatron_ring.config.optimizer import RouterLossConfig
    from megatron_ring.config.parallel import ParallelConfig
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import build_model, forward_packed
    from megatron_ring.parallel import context

    if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
        from tools.bench_train_work import fill_with_noise
    else:
        from bench_train_work import fill_with_noise

    positions = torch.arange(lengths[0], device="cuda").repeat(len(lengths))
    rows = torch.arange(len(tokens), device="cuda")
    here = context.initialize(ParallelConfig(), shape, 0)
    model = build_model(shape, here, RouterLossConfig(), torch.bfloat16, exact=exact)
    with torch.no_grad():
        torch.manual_seed(0)
        fill_with_noise(model, shape.init_std)
    logprobs: list[torch.Tensor] = []

    def loss(logp: Any, _entropies: Any, _part: Any) -> Any:
        logprobs.append(logp.detach())
        return -logp.sum()

    times = []
    for _ in range(_STEPS):
        logprobs.clear()
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.enable_grad():
            model.router_losses.start_step(1.0)
            hidden = forward_packed(model, tokens, PackedLayout(positions, lengths))
            torch.cuda.synchronize()
            layers = time.perf_counter() - began
        model.output_layer.loss(hidden, rows, tokens.roll(-1), 1.0, loss)
        torch.cuda.synchronize()
        times.append((1000 * layers, 1000 * (time.perf_counter() - began)))
        del hidden
    del model
    context.shutdown()
    torch.cuda.empty_cache()
    return [sorted(ms[1:])[2] for ms in zip(*times, strict=True)], torch.cat(logprobs).double()
