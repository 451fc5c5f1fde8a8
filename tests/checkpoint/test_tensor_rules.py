"""The rules that build parameters out of published tensors: identity both ways, under random shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.config import ModelConfig, ParallelConfig
from tests.layouts import LAYOUTS


@st.composite
def shapes(draw: Any) -> ModelConfig:
    groups = draw(st.sampled_from([1, 2, 3]))
    layers = draw(st.integers(1, 3))
    experts = draw(st.integers(1, 5))
    return ModelConfig(
        num_layers=layers,
        hidden_size=draw(st.sampled_from([4, 8])),
        num_attention_heads=groups * draw(st.integers(1, 3)),
        num_key_value_heads=groups,
        head_dim=draw(st.sampled_from([2, 4])),
        vocab_size=draw(st.sampled_from([6, 10])),
        num_experts=experts,
        experts_per_token=draw(st.integers(1, experts)),
        expert_width=draw(st.sampled_from([2, 6])),
        num_shared_experts=draw(st.integers(0, 2)),
        dense_width=draw(st.sampled_from([4, 6])),
        first_dense_layers=draw(st.integers(0, layers)),
    )


@settings(max_examples=60, deadline=None)
@given(shapes())
def test_split_undoes_merge_and_every_published_tensor_is_used_once(shape: ModelConfig) -> None:
    from megatron_ring.checkpoint.tensor_rules import published_shapes, rules_for

    sizes = published_shapes(shape)
    tensors = {name: torch.randn(size) for name, size in sizes.items()}
    rules = rules_for(shape)
    used = [source for rule in rules for source in rule.sources]
    assert sorted(used) == sorted(sizes)
    assert len({rule.parameter for rule in rules}) == len(rules)
    for rule in rules:
        pieces = rule.form.split(rule.form.merge([tensors[source] for source in rule.sources]))
        for source, piece in zip(rule.sources, pieces, strict=True):
            assert torch.equal(piece, tensors[source]), source


@settings(max_examples=60, deadline=None)
@given(shapes(), st.sampled_from([1, 2]))
def test_shards_hold_every_element_once(shape: ModelConfig, size: int) -> None:
    """Number the elements of a whole parameter; its shards together hold each number once (or whole, when shared)."""
    from megatron_ring.checkpoint.tensor_rules import published_shapes, rules_for

    sizes = published_shapes(shape)
    for rule in rules_for(shape):
        whole = rule.form.merge([torch.zeros(sizes[source]) for source in rule.sources])
        numbered = torch.arange(whole.numel()).view(whole.shape)
        shards = [rule.form.shard(numbered, rank, size) for rank in range(size)]
        if all(torch.equal(shard, numbered) for shard in shards):
            continue
        if any(shard.shape != shards[0].shape for shard in shards):
            continue  # does not divide: refused by ParallelConfig.check before any rule is used
        assert sorted(torch.cat([s.flatten() for s in shards]).tolist()) == list(range(whole.numel())), rule.parameter


def weights_by_name(parallel: ParallelConfig) -> dict[str, torch.Tensor]:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.presets import RING_TINY

    here = context.initialize(parallel, RING_TINY, seed=0)
    model = build_model(RING_TINY, here)
    initialize_weights(model, here, seed=5)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["tp2", "ep2", "pp2"])
def test_random_weights_do_not_depend_on_the_layout(run_on, layout: str) -> None:
    (whole,) = run_on(1, weights_by_name, ParallelConfig())
    processes, parallel = LAYOUTS[layout]
    parts = run_on(processes, weights_by_name, parallel)
    everything = torch.cat([w.flatten() for w in whole.values()]).sort().values
    if layout == "tp2":
        column = torch.cat([p["output_layer.weight"] for p in parts])
        assert torch.equal(column, whole["output_layer.weight"])
    if layout == "ep2":
        assert torch.equal(torch.cat([p["decoder.layers.1.mlp.experts.down"] for p in parts]),
                           whole["decoder.layers.1.mlp.experts.down"])  # fmt: skip
    if layout == "pp2":
        together = torch.cat([w.flatten() for p in parts for w in p.values()]).sort().values
        assert torch.equal(together, everything)
