"""Parameter counts: the formula against the published figures, and against the built model."""

from __future__ import annotations

import pytest

from megatron_ring.config.declarations import parameter_counts
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.presets import PRESETS, RING_LITE, RING_TINY, get_preset
from megatron_ring.errors import UserError


def test_ring_lite_has_the_published_size() -> None:
    total, active = parameter_counts(RING_LITE)
    assert f"{total / 1e9:.2f} {active / 1e9:.2f}" == "16.80 2.75"


def count_built(shape: ModelConfig) -> int:
    from megatron_ring.config.parallel import ParallelConfig
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context

    model = build_model(shape, context.initialize(ParallelConfig(), shape, seed=0))
    return sum(parameter.numel() for parameter in model.parameters())


def count_published(shape: ModelConfig) -> int:
    from math import prod

    from megatron_ring.checkpoint.tensor_rules import published_shapes

    return sum(prod(size) for size in published_shapes(shape).values())


@pytest.mark.distributed
def test_the_built_model_has_as_many_parameters_as_computed(run_on) -> None:
    assert run_on(1, count_built, RING_TINY) == [parameter_counts(RING_TINY)[0]]


def test_the_published_tensors_of_ring_lite_add_up(run_on) -> None:
    assert run_on(1, count_published, RING_LITE) == [parameter_counts(RING_LITE)[0]]


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean ring-tiny"):
        get_preset("ring-tinny")
    assert all(get_preset(name) is shape for name, shape in PRESETS.items())
