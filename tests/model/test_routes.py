"""Experts that are given: the MoE layer against a brute force in float64, with its losses and gradients; what the sampler
notes is what its model chose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.model.kernels.router import logits_gradient, weigh_experts
from tests.layouts import LAYOUTS

TOKENS, KNOWN, REAL = 48, 30, 41  # the first 30 tokens have given experts, the last 7 are padding
SHAPE = replace(RING_TINY, num_layers=3, first_dense_layers=1)


@pytest.mark.parametrize(("experts", "k"), [(4, 1), (60, 6)])
def test_weights_sums_and_gradient_of_given_experts(experts: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, experts, dtype=torch.float64, generator=generator).requires_grad_()
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:k] for _ in range(20)])
    padding = torch.arange(20) >= 15
    weights, same, sums = weigh_experts(logits.detach(), chosen, padding)
    p, lse, valid = torch.softmax(logits, -1), torch.logsumexp(logits, -1), (~padding).double()
    wanted = p.gather(1, chosen)
    wanted = wanted / wanted.sum(-1, keepdim=True) if k > 1 else wanted
    assert torch.allclose(weights, wanted) and torch.equal(same, chosen)
    counts = torch.zeros_like(p).scatter(1, chosen, 1.0)[~padding].sum(0)
    totals = torch.stack(((lse.square() * valid).sum(), valid.sum()))
    assert torch.allclose(sums, torch.cat((counts, p[~padding].sum(0), totals)))
    d = torch.randn(20, k, dtype=torch.float64, generator=generator)
    share, scale = torch.rand(experts, dtype=torch.float64, generator=generator), torch.full((1,), 0.5)
    losses = 0.3 * experts * ((p @ share) * valid).sum() + 0.02 * (lse.square() * valid).sum()
    ((wanted * d).sum() + 0.5 * losses).backward()
    found = logits_gradient(logits.detach(), (weights, chosen), d, padding, share, scale, 0.3, 0.02)
    assert torch.allclose(found, logits.grad)


def by_hand(x: torch.Tensor, layer: dict[str, torch.Tensor], experts_tk: torch.Tensor) -> torch.Tensor:
    """Sum of the given experts by softmax over their logits, plus the shared one."""

    def swiglu(name: str) -> torch.Tensor:
        gate, up, down = (layer[f"mlp.{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    weights = torch.zeros(len(x), RING_TINY.num_experts, dtype=x.dtype)
    logits = x @ layer["mlp.gate.weight"].T
    weights = weights.scatter(1, experts_tk, torch.softmax(logits.gather(1, experts_tk), -1))
    return sum(weights[:, e, None] * swiglu(f"experts.{e}") for e in range(RING_TINY.num_experts)) + swiglu("shared_experts")


def replayed(parallel: ParallelConfig, replay: bool) -> dict[str, float]:
    """Differences of a layer whose first tokens have given experts, which its router would not choose."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    from megatron_ring.checkpoint.tensor_rules import rules_for
    from megatron_ring.checkpoint.weights import draw, initialize_weights
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.model.routes import GivenRoutes
    from megatron_ring.parallel import collectives, context

    layer = {
        rule.source.removeprefix("model.layers.0."): draw(rule, RING_TINY.init_std, seed=3).double()
        for rule in rules_for(RING_TINY)
        if rule.source.startswith("model.layers.0.")
    }
    here = context.initialize(parallel, RING_TINY, seed=0)
    model = build_model(RING_TINY, here, RouterLossConfig(balance=0.3, z=0.02))
    initialize_weights(model, seed=3)
    model.router_losses.replay = replay
    moe = model.decoder.layers[0].mlp.train()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, RING_TINY.hidden_size, generator=generator).double() * 2
    given = torch.stack([torch.randperm(8, generator=generator)[:2] for _ in range(TOKENS)])
    known, valid = torch.arange(TOKENS) < KNOWN, torch.arange(TOKENS) < REAL
    gate = layer["mlp.gate.weight"].requires_grad_()
    logits = x @ gate.T
    own = logits.topk(2).indices
    used = torch.where(known[:, None], given, own) if replay else own
    wanted = by_hand(x, layer, used)
    share = torch.zeros_like(logits).scatter(1, used, 1.0)[valid].sum(0).detach() / (2 * REAL)
    balance = 8 * (share * torch.softmax(logits, -1)[valid].mean(0)).sum()
    z = torch.logsumexp(logits, -1)[valid].square().mean()
    (wanted.square().mean() + 0.3 * balance + 0.02 * z).backward()
    others = sum(len(set(a) - set(b)) for a, b in zip(given[:KNOWN].tolist(), own[:KNOWN].tolist(), strict=True))

    part = slice(None)
    if parallel.sequence_parallel:
        part = slice(24 * here.tensor_rank, 24 * (here.tensor_rank + 1))
    model.router_losses.start_step(gradient_scale=1 / REAL)
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
    layout = PackedLayout(torch.arange(TOKENS), [REAL])
    layout.routes = GivenRoutes(given.to(torch.uint8)[:, None], known, first=0)
    mine = x.float()[part, None]
    out = moe.with_residual(mine, torch.zeros_like(mine), ~valid[None, part], layout)
    (out.square().sum() / wanted.numel()).backward()
    gradient, sums = moe.router.weight.grad.double(), model.router_losses.local_sums(here.device)
    if parallel.sequence_parallel:
        gradient, sums = collectives.sum_over_tensor(gradient), collectives.sum_over_tensor(sums)
    return {
        "output": (out[:, 0].double() - wanted[part]).abs().max().item(),
        "balance": abs(sums[0].item() / sums[2].item() - balance.item()),
        "gradient": (gradient - gate.grad).abs().max().item(),
        "others": abs(sums[3].item() - others),
        "compared": abs(sums[4].item() - 2 * KNOWN),
    }


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "replay"), [("one", True), ("one", False), ("tp2", True), ("ep2", True), ("tp2_etp2", True)]
)
def test_a_layer_with_given_experts(run_on: Any, layout: str, replay: bool) -> None:
    processes, parallel = LAYOUTS[layout]
    for found in run_on(processes, replayed, parallel, replay):
        assert max(found.values()) < 2e-5, found


def noted(parallel: ParallelConfig, shape: ModelConfig) -> tuple[int, list[tuple[list[int], list[int], bytes]]]:
    """First MoE layer here, and prompt, response and routes of responses that were cut, preempted and decoded in rows."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.sampler.requests import GenerationRequest, request_seed
    from megatron_ring.sampler.sampler import Sampler

    here = context.initialize(parallel, shape, seed=0)
    model = build_model(shape, here)
    initialize_weights(model, seed=11)
    prompts = [[5 + i, 17, 30 + i, 9][: 2 + i] for i in range(3)]
    requests = [GenerationRequest(p, request_seed(i, k), 24) for i, p in enumerate(prompts) for k in range(2)]
    sampling = SamplingConfig(max_batch=4, page_size=4, kv_tokens=60, prefill_tokens=7)
    done = []
    while requests:
        sampler = Sampler(model, here, sampling, 3, note_routes=True)
        sampler.horizon, sampler.runner.flies = 3 if here.world_size == 1 else 1, True
        found = sampler.generate(requests, token_budget=40)
        pairs = list(zip(requests, found, strict=True))
        done += [(r.prompt_tokens, list(c.tokens), c.routes) for r, c in pairs if c.finish_reason]
        requests = [r.continued(c) for r, c in pairs if not c.finish_reason]
    return model.route_layers.start, sorted(done)


def chosen(shape: ModelConfig, sequences: list[tuple[list[int], list[int], bytes]]) -> list[torch.Tensor]:
    """The experts [response tokens, MoE layers, k] of a whole forward pass, in one process."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import build_model, forward_all_stages
    from megatron_ring.model.routes import NotedRoutes, new_routes
    from megatron_ring.parallel import context

    model = build_model(shape, context.initialize(ParallelConfig(), shape, seed=0))
    initialize_weights(model, seed=11)
    model.eval()
    found = []
    for prompt, response, _ in sequences:
        tokens = torch.tensor(prompt + response)
        layout, room = PackedLayout(torch.arange(len(tokens)), [len(tokens)]), new_routes(model, len(tokens))
        layout.routes = NotedRoutes(room, model.route_layers.start)
        forward_all_stages(model, tokens, layout)
        found.append(room[len(prompt) - 1 : -1])
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["one", "tp2", "ep2", "pp2"])
def test_the_sampler_notes_what_its_model_chose(run_on: Any, layout: str) -> None:
    processes, parallel = LAYOUTS[layout]
    for first, found in run_on(processes, noted, parallel, SHAPE):
        wanted = run_on(1, chosen, SHAPE, found)[0]
        layers = len(parallel.stage_layers(3, 0)) - 1 if parallel.pipeline > 1 and first == 1 else 2 if first == 1 else 1
        assert sum(len(response) for _, response, _ in found) > 100
        for (_, response, routes), experts in zip(found, wanted, strict=True):
            mine = torch.frombuffer(bytearray(routes), dtype=torch.uint8).view(len(response), layers, 2)
            assert torch.equal(mine.sort(-1).values, experts[:, first - 1 : first - 1 + layers].sort(-1).values)
