"""The MoE layer and its losses against brute force in float64, and against autograd of the written formulas."""

from __future__ import annotations

import pytest
import torch

from megatron_ring.config.optimizer import RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from tests.layouts import LAYOUTS


def brute_force(x: torch.Tensor, layer: dict[str, torch.Tensor], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and router logits of one MoE layer, token by token, expert by expert."""
    logits = x @ layer["mlp.gate.weight"].T
    probabilities = torch.softmax(logits, dim=-1)

    def swiglu(token: torch.Tensor, name: str) -> torch.Tensor:
        gate, up, down = (layer[f"mlp.{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (torch.nn.functional.silu(token @ gate.T) * (token @ up.T)) @ down.T

    rows = []
    for token, p in zip(x, probabilities, strict=True):
        weights, experts = p.topk(k)
        weights = weights / weights.sum()
        routed = [w * swiglu(token, f"experts.{int(e)}") for w, e in zip(weights, experts, strict=True)]
        rows.append(sum(routed) + swiglu(token, "shared_experts"))
    return torch.stack(rows), logits


def written_losses(logits: torch.Tensor, valid: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """B and Z as the report writes them, over the valid tokens only."""
    logits = logits[valid]
    experts = logits.shape[1]
    chosen = torch.zeros_like(logits).scatter(1, logits.topk(k).indices, 1.0)
    f, p = chosen.sum(0) / (k * len(logits)), torch.softmax(logits, -1).mean(0)
    return experts * (f * p).sum(), torch.logsumexp(logits, -1).square().mean()


def compare(parallel: ParallelConfig) -> dict[str, float]:
    """Largest differences of output, of the losses, and of the router's gradient, on this rank's tokens."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    from megatron_ring.checkpoint.tensor_rules import rules_for
    from megatron_ring.checkpoint.weights import draw, initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import collectives, context

    layer = {
        rule.source.removeprefix("model.layers.0."): draw(rule, RING_TINY.init_std, seed=3).double()
        for rule in rules_for(RING_TINY)
        if rule.source.startswith("model.layers.0.")
    }
    here = context.initialize(parallel, RING_TINY, seed=0)
    model = build_model(RING_TINY, here, RouterLossConfig(balance=0.3, z=0.02))
    initialize_weights(model, seed=3)
    moe = model.decoder.layers[0].mlp.train()
    k = RING_TINY.experts_per_token
    x = torch.randn(48, RING_TINY.hidden_size, generator=torch.Generator().manual_seed(0)).double() * 2
    x[5:9] = x[5]  # several tokens alike: some experts stay empty, one takes many
    valid = torch.arange(48) < 41
    layer["mlp.gate.weight"].requires_grad_()
    wanted, logits = brute_force(x, layer, k)
    balance, z = written_losses(logits, valid, k)
    (0.3 * balance + 0.02 * z).backward()

    part = slice(None)
    if parallel.sequence_parallel:
        part = slice(24 * here.tensor_rank, 24 * (here.tensor_rank + 1))
    model.router_losses.start_step(gradient_scale=1 / 41)  # so that gradients are those of the means
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
    mine = x.float()[part, None].clone().requires_grad_()
    out, _ = moe(mine, ~valid[None, part])
    difference = (out[:, 0].double() - wanted[part]).abs().max().item()
    (out * 0).sum().backward()  # the losses alone
    gradient = moe.router.weight.grad.double()
    sums = model.router_losses.local_sums(here.device)
    if parallel.sequence_parallel:
        gradient, sums = collectives.sum_over_tensor(gradient), collectives.sum_over_tensor(sums)
    return {
        "output": difference,
        "balance": abs(sums[0].item() / sums[2].item() - balance.item()),
        "z": abs(sums[1].item() / sums[2].item() - z.item()),
        "gradient": (gradient - layer["mlp.gate.weight"].grad).abs().max().item(),
    }


@pytest.mark.distributed
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "pp" not in name])
def test_output_and_losses_equal_brute_force(run_on, layout: str) -> None:
    processes, parallel = LAYOUTS[layout]
    for found in run_on(processes, compare, parallel):
        assert max(found.values()) < 2e-5, found


def beside_and_in_turn(parallel: ParallelConfig, alike: bool) -> tuple[list[bool], list[int]]:
    """Whether the layer's output has the same bits with a side stream, without gradients and with them; and the works that
    ran beside in each, all joined."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.parallel.graphs import Pending, SideStream

    class Noted(SideStream):
        begun: list[Pending]

        def beside(self, work):
            self.begun.append(super().beside(work))
            return self.begun[-1]

    here = context.initialize(parallel, RING_TINY, seed=0)
    model = build_model(RING_TINY, here, RouterLossConfig())
    initialize_weights(model, seed=3)
    moe = model.decoder.layers[0].mlp.eval()
    generator = torch.Generator().manual_seed(here.rank)
    x, residual = torch.randn(2, 24, 1, RING_TINY.hidden_size, generator=generator)
    same, counts = [], []
    for gradients in (False, True):
        outputs = []
        for side in (None, Noted()):
            layout = PackedLayout(torch.arange(24 * parallel.tensor), [24 * parallel.tensor])
            layout.alike = alike and not gradients
            layout.side, layout.idle = side, torch.arange(24 * parallel.tensor) % 5 == 0
            if side is not None:
                side.begun = []
            with torch.set_grad_enabled(gradients):
                outputs.append(moe.with_residual(x, residual, None, layout).detach())
        same.append(torch.equal(*outputs))
        counts.append(len(side.begun))
        assert all(pending._work is None for pending in side.begun)
    return same, counts


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "alike", "beside"),
    [("one", True, 1), ("ep2", True, 1), ("ep2", False, 1), ("tp2", True, 0), ("tp2_ep2", True, 0), ("tp2_etp2", False, 0)],
)
def test_shared_experts_beside_the_routed_ones_change_no_bit(run_on, layout: str, alike: bool, beside: int) -> None:
    """They run in turn where they take part in collectives, and where there are gradients."""
    processes, parallel = LAYOUTS[layout]
    for same, counts in run_on(processes, beside_and_in_turn, parallel, alike):
        assert same == [True, True] and counts == [beside, 0]
