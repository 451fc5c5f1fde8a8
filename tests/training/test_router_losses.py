"""The router's losses in policy training: the formulas of docs/c3po.md in float64 from what the routers saw, and what of
them depends on how a step is split into micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_ring.config.optimizer import RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.training.loss_output import LossOutput
from tests.rollout.responses import pack_rollouts
from tests.training.test_policy_training import SHAPE, prepared, sampled

WEIGHTS = RouterLossConfig(balance=1e-2, z=1e-3)
CAPACITIES = (128, 32, 16)


class Nothing:
    """A loss without a part of its own, so that gradients are the router's."""

    temperature = 1.0

    def __call__(self, logprobs: torch.Tensor, entropies: torch.Tensor, batch: Any) -> LossOutput:
        return LossOutput(0.0 * logprobs.sum())


def written_losses(model: Any, batches: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """B and Z of a step, float64 and differentiable, each summed over layers; the number of layers. B of each micro-batch
    counts by its tokens."""
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_packed
    from megatron_ring.model.router import RingRouter
    from megatron_ring.training.trainer import sequence_lengths

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    routers = [module for module in model.modules() if isinstance(module, RingRouter)]
    hooks = [router.register_forward_pre_hook(lambda one, given: seen.append((given[0], one.weight))) for router in routers]
    every = sum(int(batch.token_mask.sum()) for batch in batches)
    balance, z = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    model.eval()  # the product's own losses are off
    for batch in batches:
        seen.clear()
        layout = PackedLayout(batch.positions, sequence_lengths(batch))
        forward_packed(model, batch.tokens, layout, padding=~batch.token_mask)
        real = int(batch.token_mask.sum())
        for hidden, weight in seen:
            logits = (hidden.double() @ weight.double().t())[batch.token_mask]
            slots = torch.zeros_like(logits).scatter(1, logits.topk(SHAPE.experts_per_token).indices, 1.0)
            share = slots.sum(0) / slots.sum()
            balance = balance + real / every * SHAPE.num_experts * (share * logits.softmax(-1).mean(0)).sum()
            z = z + logits.logsumexp(-1).square().sum() / every
    for hook in hooks:
        hook.remove()
    return balance, z, len(routers)


def figures(capacity: int) -> dict[str, float]:
    """What a step says of the router's losses, and what the formulas do."""
    _, trainer, policy = prepared(ParallelConfig(), "c3po", "none", WEIGHTS)
    batches = pack_rollouts(sampled(trainer.model, "c3po"), capacity, 0)
    with torch.no_grad():
        balance, z, layers = written_losses(trainer.model, batches)
    result = trainer.train_step(policy.annotate(batches), policy.loss, 1e-3)
    found = {"batches": float(len(batches)), "balance": result.balance, "z": result.z, "grad_norm": result.grad_norm}
    found |= {"wanted_balance": balance.item() / layers, "wanted_z": z.item() / layers}
    return found | {name: result.mean(name) for name in ("policy_loss_sum", "kl_sum", "entropy_sum")}


def gradient_norms(capacity: int) -> tuple[float, float]:
    """Of a step with the router's losses alone, and of their weighted sum over layers by autograd."""
    _, trainer, _ = prepared(ParallelConfig(), "c3po", "none", WEIGHTS)
    batches = pack_rollouts(sampled(trainer.model, "c3po"), capacity, 0)
    balance, z, _ = written_losses(trainer.model, batches)
    loss = WEIGHTS.balance * balance + WEIGHTS.z * z
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    gradients = [found for found in torch.autograd.grad(loss, parameters, allow_unused=True) if found is not None]
    wanted = torch.stack([found.double().norm() for found in gradients]).norm().item()
    return trainer.train_step(batches, Nothing(), 1e-3).grad_norm, wanted


@pytest.mark.distributed
def test_z_does_not_depend_on_the_split_and_the_balance_is_that_of_micro_batches(run_on: Any) -> None:
    steps = [run_on(1, figures, capacity)[0] for capacity in CAPACITIES]
    assert [step["batches"] for step in steps] == sorted({step["batches"] for step in steps})  # three splits
    for step in steps:
        assert step["balance"] == pytest.approx(step["wanted_balance"], rel=1e-6)
        assert step["z"] == pytest.approx(step["wanted_z"], rel=1e-6)
        for name in ("z", "policy_loss_sum", "kl_sum", "entropy_sum"):
            assert step[name] == pytest.approx(steps[0][name], rel=1e-5), name
    # Fewer tokens are less evenly spread: the smaller the micro-batches, the larger B.
    assert steps[0]["balance"] < 0.97 * steps[1]["balance"] < 0.94 * steps[2]["balance"]


@pytest.mark.distributed
@pytest.mark.parametrize("capacity", CAPACITIES[:2])
def test_the_weights_act_on_the_sum_over_layers(run_on: Any, capacity: int) -> None:
    norm, wanted = run_on(1, gradient_norms, capacity)[0]
    assert norm == pytest.approx(wanted, rel=1e-4)
