"""The rules that place published tensors in ours: identity both ways, every element once, under random shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig
from tests.checkpoint.published import random_tensors, shapes
from tests.layouts import LAYOUTS


@settings(max_examples=60, deadline=None)
@given(shapes())
def test_rules_undo_themselves_and_fill_every_element_once(shape: ModelConfig) -> None:
    from megatron_ring.checkpoint.tensor_rules import rules_for

    tensors = random_tensors(shape)
    rules = rules_for(shape)
    assert sorted(rule.source for rule in rules) == sorted(tensors)
    ours = {rule.target: torch.full(rule.target_shape, float("nan")) for rule in rules}
    for rule in rules:
        place = ours[rule.target][tuple(slice(o, e) for o, e in zip(rule.box.offset, rule.box.end, strict=True))]
        assert place.isnan().all(), rule
        place.copy_(rule.to_ours(tensors[rule.source]))
        assert torch.equal(rule.to_published(place.clone()), tensors[rule.source]), rule
    assert not any(tensor.isnan().any() for tensor in ours.values())


def test_queries_keys_and_values_are_interleaved_per_group() -> None:
    """By hand: two groups of two queries, heads of one row."""
    from megatron_ring.checkpoint.tensor_rules import InterleavedQKV

    order = InterleavedQKV(groups=2, queries_per_group=2, head_dim=1)
    published = torch.tensor([[10.0], [11.0], [12.0], [13.0], [20.0], [21.0], [30.0], [31.0]])  # q0..q3, k0 k1, v0 v1
    assert order.to_ours(published)[:, 0].tolist() == [10, 11, 20, 30, 12, 13, 21, 31]


def weights_by_place(parallel: ParallelConfig) -> list[tuple[str, tuple[int, ...], torch.Tensor]]:
    from megatron_ring.checkpoint.pieces import weight_pieces
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.config.presets import RING_TINY
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context

    model = build_model(RING_TINY, context.initialize(parallel, RING_TINY, seed=0))
    initialize_weights(model, seed=5)
    return [(shard.key, shard.box.offset, shard.data.clone()) for shard in weight_pieces(model)]


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["tp2", "ep2", "pp2", "tp2_etp2", "tp2_ep2"])
def test_random_weights_do_not_depend_on_the_layout(run_on, layout: str) -> None:
    def assemble(parts: list[list[tuple[str, tuple[int, ...], torch.Tensor]]]) -> dict[str, torch.Tensor]:
        whole = {rule.target: torch.full(rule.target_shape, float("nan")) for rule in rules_for(RING_TINY)}
        for key, offset, data in (shard for part in parts for shard in part):
            whole[key][tuple(slice(o, o + s) for o, s in zip(offset, data.shape, strict=True))] = data
        return whole

    from megatron_ring.checkpoint.tensor_rules import rules_for
    from megatron_ring.config.presets import RING_TINY

    alone = assemble(run_on(1, weights_by_place, ParallelConfig()))
    processes, parallel = LAYOUTS[layout]
    together = assemble(run_on(processes, weights_by_place, parallel))
    assert all(torch.equal(together[key], alone[key]) for key in alone)
    matrix = alone["decoder.layers.1.mlp.experts.down"]
    assert matrix.std().item() == pytest.approx(RING_TINY.init_std, rel=0.02) and abs(matrix.mean().item()) < 1e-3
    assert (alone["decoder.final_layernorm.weight"] == 1).all()
