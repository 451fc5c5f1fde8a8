"""On a GPU, in bf16 and at the published widths: --exact gives a token the same bits in every tile, at every number of rows,
and in sampling as in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from megatron_ring.config.optimizer import RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_LITE
from megatron_ring.config.sampling import SamplingConfig

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

SHAPE = replace(RING_LITE, num_layers=3, first_dense_layers=1, vocab_size=16_384, init_std=0.02)
MANY = 16_384


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    from megatron_ring.parallel import context

    torch.manual_seed(0)
    yield
    context.shutdown()
    torch.cuda.empty_cache()


draw = partial(torch.randn, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("columns", "depth", "kind"),
    [
        (3072, 2048, None),
        (2048, 2048, None),
        (5632, 2048, None),
        (2048, 2816, None),
        (16_000, 2048, None),
        (64, 2048, torch.float32),
    ],
)
def test_a_row_has_the_same_bits_in_every_tile_and_company(columns: int, depth: int, kind: torch.dtype | None) -> None:
    from megatron_ring.model.kernels.exact_mm_triton import TILES, exact_mm, fits

    x, w, b = draw(MANY, depth), draw(columns, depth), draw(columns)
    whole = exact_mm(x, w, b, kind)
    wanted = x[:300].double() @ w.double().t() + b.double()
    assert ((whole[:300].double() - wanted).norm() / wanted.norm()).item() < (1e-5 if kind else 3e-3)
    for tile in TILES:
        if fits(tile, whole.itemsize):
            assert torch.equal(exact_mm(x, w, b, kind, tile), whole), tile
    for rows in range(1, 301):
        start = 37 * rows % (MANY - rows)
        assert torch.equal(exact_mm(x[start : start + rows], w, b, kind), whole[start : start + rows]), rows


@pytest.mark.parametrize(("columns", "depth"), [(2816, 2048), (2048, 1408)])
@pytest.mark.parametrize("rows", [6, 768, 5000, 60_000])
def test_an_experts_rows_have_the_bits_of_a_plain_product(columns: int, depth: int, rows: int) -> None:
    from megatron_ring.model.kernels.exact_mm_triton import TILES, exact_grouped_mm, exact_mm

    experts = 64
    x, w = draw(rows, depth), draw(experts, columns, depth)
    ends = torch.randint(experts - 2, (rows,), device="cuda").bincount(minlength=experts).cumsum(0).int()
    found = exact_grouped_mm(x, w, ends)
    for tile in TILES:
        assert torch.equal(exact_grouped_mm(x, w, ends, tile), found), tile
    start = 0
    for expert, end in enumerate(ends.tolist()):
        assert torch.equal(exact_mm(x[start:end], w[expert]), found[start:end]), expert
        start = end


@pytest.mark.parametrize(("heads", "groups", "d"), [(16, 4, 128), (8, 8, 64), (6, 2, 96)])
def test_attention_over_pages_has_the_bits_of_training(heads: int, groups: int, d: int) -> None:
    from megatron_ring.model.attention_kernels import PackedAttention
    from megatron_ring.model.exact_attention import Asked, attend_packed, attend_paged
    from megatron_ring.model.kernels.exact_attention_triton import Rows

    lengths, page, group = [4100, 1, 63, 64, 65, 700, 2048, 33], 32, heads // groups
    q, k, v = (draw(sum(lengths), n, d) for n in (heads, groups, groups))
    usual = PackedAttention(lengths, q.device, q.dtype, d)
    whole = attend_packed(Asked.of_chunks(lengths, lengths, group, q.device), usual, q, k, v)
    for rows in (Rows(64, 4, 2), Rows(128, 8, 2)):
        other = Asked.of_chunks(lengths, lengths, group, q.device, rows)
        assert torch.equal(attend_packed(other, usual, q, k, v), whole), rows
    wanted = usual(q, k, v)
    assert ((whole - wanted).float().norm() / wanted.float().norm()).item() < 6e-3
    columns = -(-max(lengths) // page)
    table = (torch.randperm(len(lengths) * columns, device="cuda").view(len(lengths), columns) + 1).int()
    keys, values = (torch.zeros(len(lengths) * columns + 1, page, groups, d, device="cuda", dtype=q.dtype) for _ in "kv")
    start = 0
    for row, length in enumerate(lengths):
        place = torch.arange(length, device="cuda")
        for pages, packed in ((keys, k), (values, v)):
            pages[table[row, place // page].long(), place % page] = packed[start : start + length]
        start += length
    for back in (1, 2, 17, 40):  # the last position, those before it, as far as sequences go
        counts = [max(0, length + 1 - back) for length in lengths]
        real = [row for row, count in enumerate(counts) if count]
        starts = [sum(lengths[:row]) for row in real]
        rows = torch.tensor([first + counts[row] - 1 for first, row in zip(starts, real, strict=True)], device="cuda")
        asked = Asked.of_decoding(torch.tensor([counts[row] for row in real], device="cuda"), group)
        assert torch.equal(attend_paged(asked, q[rows], keys, values, table[real]), whole[rows])
    for asks in ([1] * len(lengths), [max(1, n * 2 // 3) for n in lengths], lengths):
        parts = zip(q.split(lengths), whole.split(lengths), asks, strict=True)
        chunks, same = zip(*((a[-count:], b[-count:]) for a, b, count in parts), strict=True)
        found = attend_paged(Asked.of_chunks(lengths, asks, group, q.device), torch.cat(chunks), keys, values, table)
        assert torch.equal(found, torch.cat(same))


def build(exact: bool) -> tuple[Any, Any]:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context

    here = context.initialize(ParallelConfig(), SHAPE, seed=0)
    model = build_model(SHAPE, here, RouterLossConfig(), torch.bfloat16, exact=exact)
    initialize_weights(model, seed=3)
    return model, here


@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.6}, {"cuda_graphs": False}, {"top_k": 50}], ids=["graphs", "0.6", "eager", "top_k"]
)
def test_the_samplers_logprobs_and_experts_are_the_training_forwards(how: dict[str, Any]) -> None:
    """Responses of several lengths in a small batch, prompts in chunks, preemption, samples that share a prompt."""
    from megatron_ring.sampler.requests import GenerationRequest, request_seed
    from megatron_ring.sampler.trainer_mismatch import measure_mismatch

    model, here = build(exact=True)
    prompts = [torch.randint(SHAPE.vocab_size, (n,)).tolist() for n in (1, 3, 64, 65, 300, 1000)]
    requests = [
        GenerationRequest(prompt, request_seed(1, i, k), 20 + 30 * k) for i, prompt in enumerate(prompts) for k in range(4)
    ]
    sampling = SamplingConfig(**how, max_batch=11, prefill_tokens=300, kv_tokens=2600)
    found = measure_mismatch(model, here, sampling, requests, train_tokens=4096)
    assert len(found.differences) == sum(request.max_new_tokens for request in requests)
    assert not found.differences.any()
    assert found.routed > 0 and found.routed_differently == 0


def test_gradients_are_the_usual_ones() -> None:
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_packed
    from megatron_ring.parallel import context

    lengths = [700, 1, 1600, 40]
    tokens = torch.randint(SHAPE.vocab_size, (sum(lengths),), device="cuda")
    positions = torch.cat([torch.arange(n, device="cuda") for n in lengths])
    rows, gradients = torch.arange(sum(lengths), device="cuda"), []
    for exact in (False, True):
        model, _ = build(exact)
        model.router_losses.start_step(1.0)
        hidden = forward_packed(model, tokens, PackedLayout(positions, lengths))
        model.output_layer.loss(hidden, rows, tokens.roll(-1), 1.0, lambda logp, _h, _p: -logp.sum()).backward()
        gradients.append({name: parameter.grad.float() for name, parameter in model.named_parameters()})
        context.shutdown()
    wrong = sum((gradients[1][name] - usual).square().sum() for name, usual in gradients[0].items())
    whole = sum(usual.square().sum() for usual in gradients[0].values())
    assert (wrong / whole).sqrt().item() < 6e-2
