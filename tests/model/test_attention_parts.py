"""Packings of uneven lengths on a GPU, as far as a CPU can tell: which kernel is asked for, and for how many shapes."""

from __future__ import annotations

import random

import pytest
import torch

from megatron_ring.model.attention_kernels import LONG, PackedAttention, rounded_up


def test_few_shapes_are_planned_for() -> None:
    """cuDNN plans anew for every shape, 25 ms: the last sequence of a packing, cut where that ends, is no exception."""
    draw = random.Random(0)
    shapes = set()
    for _ in range(400):
        lengths = []
        while sum(lengths) < 8192:
            lengths.append(min(draw.choice((draw.randint(1, 1500), draw.randint(LONG, 8192))), 8192 - sum(lengths)))
        parts = list(PackedAttention(lengths, torch.device("cpu"), torch.bfloat16, 128, "mixed")._split(True))
        assert [length for part in parts for length in part.lengths] == lengths
        for part in parts:
            x = torch.zeros(8192, 2, 4)
            if part.computed:
                shapes.add(part.computed)
                assert part.as_batch(x).shape == (1, 2, part.computed, 4)
                assert part.lengths[0] <= part.computed <= part.lengths[0] * 17 / 16 + 64
    assert 30 < len(shapes) <= 40


@pytest.mark.parametrize(
    "lengths, kernel",
    [([8192], "cudnn"), ([2048] * 8, "cudnn"), ([2050], "mixed"), ([7000, 1192], "mixed"), ([900, 1000], "flash")],
)
def test_kernel_by_lengths(lengths: list[int], kernel: str) -> None:
    attention = PackedAttention(lengths, torch.device("cuda"), torch.bfloat16, 128)
    assert attention.kernel == kernel
    assert kernel != "cudnn" or rounded_up(attention.longest) == attention.longest
