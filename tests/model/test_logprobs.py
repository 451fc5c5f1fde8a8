"""The head's log-probs, entropies and gradients against float64, and that it never holds tokens x vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY

TOKENS, HIDDEN, VOCABULARY, REAL = 58, 24, 512, 509  # the last three classes are padding


class Largest(TorchDispatchMode):
    """The most elements that any result has, and how many products were made."""

    elements = 0
    products = 0

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.products += function in (torch.ops.aten.mm.default, torch.ops.aten.mm.out, torch.ops.aten.addmm_.default)
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return result


def make_head(parallel: ParallelConfig, here: Any, weight: torch.Tensor, chunk: int) -> Any:
    from megatron_ring.config.optimizer import RouterLossConfig
    from megatron_ring.model.head import VocabularyHead
    from megatron_ring.model.ring_model import transformer_config
    from megatron_ring.model.router import RouterLosses

    config = transformer_config(RING_TINY, here, RouterLosses(RouterLossConfig(0.0, 0.0)), torch.float32)
    head = VocabularyHead(HIDDEN, VOCABULARY, config=config, init_method=config.init_method, bias=False, gather_output=False)
    part = weight.float().chunk(parallel.tensor)[here.tensor_rank]
    head.weight.data.copy_(part)
    head.tensor_rank, head.real_columns = here.tensor_rank, min(len(part), REAL - here.tensor_rank * len(part))
    head.chunk_logits = chunk * len(part)
    return head


def differences(parallel: ParallelConfig, temperature: float, scale: float, chunk: int, counted: int) -> dict[str, float]:
    """Largest differences to float64; `chunk` tokens at a time, `counted` of the tokens count."""
    from megatron_ring.parallel import context

    here = context.initialize(parallel, RING_TINY, seed=0)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64) * scale / HIDDEN**0.5
    hidden[3] = 0.0  # uniform
    hidden[4] *= 10.0  # nearly certain
    targets = torch.randint(REAL, (TOKENS,), generator=generator)
    rows = torch.randperm(TOKENS, generator=generator)[:counted].sort().values
    weights = torch.randn(2, counted, generator=generator, dtype=torch.float64)

    exact_hidden, exact_weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = exact_hidden[rows] @ exact_weight[:REAL].t() / temperature
    log_p = torch.log_softmax(logits, dim=-1)
    expected = log_p.gather(1, targets[rows, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    total = (expected[0].exp() * weights[0] + expected[1].square() * weights[1]).sum()
    if counted:
        total.backward()

    head = make_head(parallel, here, weight, chunk)
    whole = hidden.float()
    mine = whole.chunk(parallel.tensor)[here.tensor_rank] if head.sequence_parallel else whole
    mine = mine[:, None].clone().requires_grad_()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def token_loss(logprobs: torch.Tensor, entropies: torch.Tensor, part: slice) -> torch.Tensor:
        seen.append((logprobs.detach(), entropies.detach()))
        factors = weights[:, part].float()
        return (logprobs.exp() * factors[0] + entropies.square() * factors[1]).sum()

    with Largest() as largest:
        found = head.loss(mine, rows, targets[rows], temperature, token_loss)
        (found * 3.0).backward()
    logprobs, entropies = (torch.cat(part) for part in zip(*seen, strict=True))
    wanted_hidden = torch.zeros_like(hidden) if exact_hidden.grad is None else exact_hidden.grad
    wanted_weight = torch.zeros_like(weight) if exact_weight.grad is None else exact_weight.grad
    if head.sequence_parallel:
        wanted_hidden = wanted_hidden.chunk(parallel.tensor)[here.tensor_rank]
    wanted_weight = wanted_weight.chunk(parallel.tensor)[here.tensor_rank]
    assert mine.grad is not None

    def off(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a.double() - b).abs().max().item() if a.numel() else 0.0

    return {
        "logprobs": off(logprobs, expected[0]),
        "entropy": off(entropies, expected[1]),
        "loss": off(found, total.detach()) / 10,
        "hidden": off(mine.grad[:, 0] / 3.0, wanted_hidden) / 30,
        "weight": off(head.weight.grad / 3.0, wanted_weight) / 30,
        "calls": len(seen),
        "largest": largest.elements,
    }


@pytest.mark.distributed
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize(("temperature", "scale", "chunk"), [(1.0, 1.0, 100), (0.7, 1.0, 7), (1.0, 8.0, 20), (0.7, 8.0, 1)])
@pytest.mark.parametrize("counted", [41, TOKENS])
def test_agree_with_float64(run_on, tensor: int, temperature: float, scale: float, chunk: int, counted: int) -> None:
    for found in run_on(tensor, differences, ParallelConfig(tensor=tensor), temperature, scale, chunk, counted):
        assert found.pop("calls") == -(-counted // chunk)
        # Nothing is as large as a chunk's logits, but for what has the size of the weight.
        assert found.pop("largest") <= max(chunk * VOCABULARY // tensor, VOCABULARY * HIDDEN // tensor, TOKENS * HIDDEN)
        assert max(found.values()) < 2e-5, found


@pytest.mark.distributed
@pytest.mark.parametrize("tensor", [1, 2])
def test_nothing_counts(run_on, tensor: int) -> None:
    """The loss is asked once, for its figures, and every gradient is there and 0."""
    for found in run_on(tensor, differences, ParallelConfig(tensor=tensor), 1.0, 1.0, 10, 0):
        assert found.pop("calls") == 1 and found.pop("largest") and max(found.values()) == 0


def test_no_gradients_are_made_without_need() -> None:
    from megatron_ring.parallel import context

    here = context.initialize(ParallelConfig(), RING_TINY, seed=0)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    head = make_head(ParallelConfig(), here, weight, 5)
    hidden = torch.randn(TOKENS, 1, HIDDEN, generator=generator)
    rows = torch.arange(TOKENS)
    with torch.no_grad(), Largest() as largest:
        loss = head.loss(hidden, rows, rows, 1.0, lambda logprobs, entropies, _: -logprobs.sum())
    assert not loss.requires_grad and largest.products == 12 and largest.elements <= VOCABULARY * HIDDEN
    with Largest() as largest:
        head.loss(hidden, rows, rows, 1.0, lambda logprobs, entropies, _: -logprobs.sum()).backward()
    assert largest.products == 3 * 12
    logits = head.logits(hidden, torch.tensor([7, 3]))
    wanted = hidden[[7, 3], 0] @ weight.t()
    assert torch.allclose(logits[:, :REAL], wanted[:, :REAL], atol=1e-5) and bool((logits[:, REAL:] < -1e29).all())
    context.shutdown()
