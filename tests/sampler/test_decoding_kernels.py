"""The decoding step's Triton kernels against float64 and against the CPU's own way, on the GPU where there is one and in
Triton's interpreter elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

CUDA = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed")

from megatron_ring.config.sampling import SamplingConfig  # noqa: E402
from megatron_ring.model.kernels import few_plain_triton, few_tokens_triton, norm_triton, rows_triton  # noqa: E402
from megatron_ring.model.kernels.dependent import dependent_launches  # noqa: E402
from megatron_ring.model.kernels.rows import sort_by_expert  # noqa: E402
from megatron_ring.model.kernels.slots_triton import Slots  # noqa: E402
from megatron_ring.sampler import cut_triton, draw_triton  # noqa: E402
from megatron_ring.sampler.row_settings import RowSettings, cuts, numbers_of  # noqa: E402
from megatron_ring.sampler.sampling import processed, uniforms  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")


def chosen_experts(tokens: int, k: int, experts: int, seed: int, only: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, experts, generator=generator)
    if only is not None:  # everything goes to few experts
        scores[:, only:] = -1.0
    return scores.topk(k, dim=1).indices.to(DEVICE)


@given(st.integers(1, 70), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_slots_are_sorted_like_the_trainer_sorts_them(tokens: int, k: int, seed: int) -> None:
    experts_tk = chosen_experts(tokens, k, 8, seed)
    order, back, ends, made = few_tokens_triton.sort_slots(experts_tk, 8)
    assert made is not None and made.tolist() == [0] * 8
    wanted = sort_by_expert(experts_tk, 8)
    assert torch.equal(order.long(), wanted.order)
    assert torch.equal(back.long(), wanted.back)
    assert torch.equal(ends, wanted.ends)


def test_slots_of_experts_that_are_elsewhere() -> None:
    experts_tk = torch.tensor([[-5, 1], [9, 0], [1, 2]], device=DEVICE)
    order, back, ends, _ = few_tokens_triton.sort_slots(experts_tk, 2)
    assert back.tolist() == [[-1, 1], [-1, 0], [2, -1]] and ends.tolist() == [1, 3] and order[:3].tolist() == [3, 1, 4]


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_slots_of_idle_tokens_are_nobodys(idle: list[bool], k: int, seed: int) -> None:
    experts_tk, idle_t = chosen_experts(len(idle), k, 8, seed), torch.tensor(idle, device=DEVICE)
    order, back, ends, _ = few_tokens_triton.sort_slots(experts_tk, 8, idle_t)
    wanted_order, wanted_back, wanted_ends, _ = few_tokens_triton.sort_slots(experts_tk.masked_fill(idle_t[:, None], 8), 8)
    computed = k * idle.count(False)
    assert ends.tolist() == wanted_ends.tolist() and ends[-1] == computed
    assert torch.equal(back, wanted_back) and bool((back[idle_t] == -1).all())
    assert torch.equal(order[:computed], wanted_order[:computed])


@pytest.mark.parametrize(
    ("mean", "rows", "beside"),
    [
        (0.1, 16, 1),
        (4.5, 16, 1),
        (6.0, 32, 1),
        (24.0, 32, 2),
        (48.0, 64, 2),
        (64.0, 96, 1),
        (72.0, 96, 2),
        (96.0, 128, 2),
        (500.0, 128, 6),
    ],
)
def test_programs_have_room_for_half_as_many_rows_again(mean: float, rows: int, beside: int) -> None:
    assert few_tokens_triton.program_rows(mean) == (rows, beside)
    narrow, narrow_beside = few_tokens_triton.program_rows(mean, 64, narrow=True)
    assert narrow == min(64, max(16, 2 ** math.ceil(math.log2(max(mean, 1)))))
    assert min(rows * beside, narrow * narrow_beside) >= 1.5 * mean


def test_few_experts_get_narrower_tiles() -> None:
    tiles = few_tokens_triton.usual_tiles
    assert [tiles(128, experts, 2048, 1408, 0)[1].rows for experts in (64, 16, 9, 2)] == [128, 128, 128, 64]
    assert [tiles(128, experts, 2048, 1408, 0)[0].rows for experts in (64, 12, 11, 2)] == [128, 128, 64, 64]
    assert [tiles(16, experts, 2048, 1408, 2)[0].rows for experts in (64, 12, 11, 1)] == [128, 128, 64, 64]
    assert [tiles(96, experts, 2048, 1408, 0)[1].rows for experts in (64, 16, 9, 2)] == [256, 128, 128, 64]


@pytest.mark.parametrize("experts", [64, 16, 1])
@pytest.mark.parametrize(
    ("parts", "rows", "room"),  # kB of a program, of an RTX 4090, an A100 and an H100
    [*((0, rows, room) for rows in (16, 32, 64, 96, 128) for room in (99, 163, 227)),
     *((parts, rows, 227) for parts in (1, 2) for rows in (16, 32, 64))],
)  # fmt: skip
def test_tiles_have_room(parts: int, rows: int, room: int, experts: int) -> None:
    itemsize = 1 if parts else 2
    chosen = few_tokens_triton.usual_tiles(rows, experts, 2048, 1408, parts, itemsize, room << 10)
    for matrices, tile in zip((2, 1), chosen, strict=True):
        held = itemsize * (matrices * tile.rows + max(1, parts) * rows)
        assert tile.stages * tile.columns * held <= room << 10
    assert room < 227 or chosen == few_tokens_triton.usual_tiles(rows, experts, 2048, 1408, parts, itemsize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if CUDA else [torch.float32])
@pytest.mark.parametrize(
    ("tokens", "k", "hidden", "width", "only"),  # `only`: so many experts have all
    [(1, 2, 64, 32, None), (5, 1, 96, 40, None), (70, 3, 160, 96, None), (90, 2, 64, 48, 2), (150, 4, 64, 40, None)],
)
def test_experts_against_float64(tokens: int, k: int, hidden: int, width: int, only: int | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    x, gate_up, down = draw(tokens, hidden), draw(8, 2 * width, hidden) / hidden**0.5, draw(8, hidden, width) / width**0.5
    weights = torch.rand(tokens, k, generator=generator).to(DEVICE)
    experts_tk = chosen_experts(tokens, k, 8, seed=tokens, only=only)
    tile = few_tokens_triton.Tile(32, 64, 2, 4)
    y_nh, back = few_tokens_triton.sorted_outputs(x, weights, experts_tk, gate_up, down, (tile, tile))
    gates, ups = torch.einsum("th,tkfh->tkf", x.double(), gate_up.double()[experts_tk]).chunk(2, dim=-1)
    act = torch.nn.functional.silu(gates) * ups * weights.double()[..., None]
    wanted = torch.einsum("tkf,tkhf->tkh", act, down.double()[experts_tk])
    found = y_nh[back.long()].double()
    assert (found - wanted).norm() / wanted.norm() < (2e-6 if dtype is torch.float32 else 1e-2)
    idle_t = torch.rand(tokens, generator=generator).to(DEVICE) < 0.5  # the others' are the same, theirs is left out
    y_nh, back = few_tokens_triton.sorted_outputs(x, weights, experts_tk, gate_up, down, (tile, tile), idle_t=idle_t)
    summed = rows_triton.combine(y_nh, back, (x,))
    wanted = torch.where(idle_t[:, None], 0.0, wanted.sum(1)) + x.double()
    assert (summed.double() - wanted).norm() / wanted.norm() < (2e-6 if dtype is torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if CUDA else [torch.float32])
@pytest.mark.parametrize("rows", [16, 64, 96, 128])
@pytest.mark.parametrize("beside", [1, 2])
@pytest.mark.parametrize("partly", [False, True] if CUDA else [True])
def test_programs_multiply_the_rows_that_there_are(rows: int, beside: int, partly: bool, dtype: torch.dtype) -> None:
    """Experts with none, few, a quarter and a half more than the smaller power of two, more still, and several rounds."""
    counts = torch.tensor([0, 3, 64, 65, 80, 81, 96, 97, 128, 290])
    hidden, width, tokens = 96, 72, int(counts.sum())
    generator = torch.Generator().manual_seed(rows)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    x, gate_up, down = draw(tokens, hidden), draw(10, 2 * width, hidden) / hidden**0.5, draw(10, hidden, width) / width**0.5
    weights, order = torch.rand(tokens, 1, generator=generator).to(DEVICE), torch.randperm(tokens, generator=generator)
    ends = counts.cumsum(0).to(DEVICE, torch.int32)
    tile = few_tokens_triton.Tile(32, 32, 2, 4)
    slots = Slots(order.to(DEVICE, torch.int32), order, ends, torch.zeros_like(ends) if partly else None)
    with dependent_launches():  # on a Hopper GPU
        found = few_plain_triton.products(x, weights, slots, gate_up, down, rows, beside, tile, tile)
    for expert, (end, count) in enumerate(zip(ends.tolist(), counts.tolist(), strict=True)):
        some = order[end - count : end].to(DEVICE)
        gates, ups = (x[some].double() @ gate_up[expert].double().t()).chunk(2, dim=-1)
        act = torch.nn.functional.silu(gates) * ups * weights[some].double()
        wanted = act @ down[expert].double().t()
        difference = (found[end - count : end].double() - wanted).norm()
        assert difference <= wanted.norm() * (2e-6 if dtype is torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if CUDA else [torch.float32])
@pytest.mark.parametrize("tokens", [1, 20, 64, 100, 200])
def test_an_expert_that_all_tokens_go_to(tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((tokens, 96), (2 * 136, 96), (96, 136))
    x, gate_up, down = ((torch.randn(shape, generator=generator) * 0.3).to(DEVICE, dtype) for shape in shapes)
    found = few_tokens_triton.one_expert(x, gate_up, down)
    gates, ups = (x.double() @ gate_up.double().t()).chunk(2, dim=-1)
    wanted = (torch.nn.functional.silu(gates) * ups) @ down.double().t()
    assert (found.double() - wanted).norm() / wanted.norm() < (2e-6 if dtype is torch.float32 else 1e-2)
    assert torch.equal(few_tokens_triton.one_expert(x, gate_up, down), found)  # what is kept for so many tokens is as it was


def rows_of(*samplings: SamplingConfig, count: int = 1) -> RowSettings:
    """Each of them for `count` rows."""
    each = [sampling for sampling in samplings for _ in range(count)]
    return RowSettings.of([numbers_of(sampling) for sampling in each], any(map(cuts, each)), DEVICE)


def heated(temperature: float, count: int) -> RowSettings:
    return rows_of(SamplingConfig(temperature=temperature), count=count)


def in_its_interval(logits_nv: torch.Tensor, ids: torch.Tensor, u: torch.Tensor, temperature: float) -> torch.Tensor:
    """Whether the distribution function passes u at each id, up to fp32's rounding."""
    p = processed(logits_nv, heated(temperature, len(logits_nv)))
    upper = p.cumsum(-1).gather(1, ids[:, None])[:, 0]
    lower = upper - p.gather(1, ids[:, None])[:, 0]
    return (lower - 2e-6 <= u) & (u <= upper + 2e-6)


@pytest.mark.parametrize("width", [7, 512, 4096, 4097, 20_000])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("scale", [0.1, 4.0, 60.0])
def test_drawing_is_inversion_of_the_distribution_function(width: int, temperature: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(width)
    logits = (torch.randn(9, width, generator=generator) * scale).to(DEVICE)
    logits[:, width // 2] = -1e30  # impossible
    seeds = torch.randint(2**62, (9,), generator=generator).to(DEVICE)
    positions = torch.arange(9, device=DEVICE)
    ids, logprobs, kept, entropies = draw_triton.draw(logits, seeds, positions, heated(temperature, 9))
    assert torch.equal(kept, logprobs)
    found = ids.long()
    log_p = torch.log_softmax(logits.double() / temperature, dim=-1)
    assert in_its_interval(logits, found, uniforms(seeds, positions), temperature).all()
    assert torch.allclose(logprobs, log_p.gather(1, found[:, None])[:, 0], atol=5e-5, rtol=1e-6)
    assert torch.allclose(entropies, -(log_p.exp() * log_p).sum(-1), atol=5e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = torch.randn(6, 9000, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    seeds, positions = torch.arange(6, device=DEVICE) * 977, torch.arange(6, device=DEVICE)
    together = torch.stack(draw_triton.draw(logits, seeds, positions, heated(1.0, 6)))
    one = heated(1.0, 1)
    alone = [torch.stack(draw_triton.draw(logits[i : i + 1], seeds[i : i + 1], positions[i : i + 1], one)) for i in range(6)]
    assert torch.equal(together, torch.cat(alone, dim=1))


MIXED = [SamplingConfig(), SamplingConfig(temperature=0.6, top_p=0.9), SamplingConfig(temperature=0.0, top_k=5),
         SamplingConfig(temperature=1.5), SamplingConfig(top_k=20, min_p=0.05), SamplingConfig(temperature=2.0, min_p=0.3),
         SamplingConfig(temperature=0.7, top_k=50, top_p=0.8, min_p=0.02)]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [100, cut_triton.TILE + 3])
def test_rows_may_differ_in_their_settings(width: int, dtype: torch.dtype) -> None:
    """Each is bit for bit what it is alone, where rows without cuts take the kernels that know of none."""
    generator = torch.Generator().manual_seed(width)
    logits = (torch.randn(len(MIXED), width, generator=generator) * 3).to(DEVICE, dtype)
    seeds = torch.arange(len(MIXED), device=DEVICE) * 977 + 5
    whole = DrawOf(logits, seeds, rows_of(*MIXED))
    for i, sampling in enumerate(MIXED):
        alone = DrawOf(logits[i : i + 1], seeds[i : i + 1], rows_of(sampling))
        assert alone.settings.cuts == cuts(sampling)
        assert torch.equal(whole.numbers[:, i], alone.numbers[:, 0])
        if sampling.greedy:
            assert whole.numbers[0, i] == logits[i].argmax() and whole.numbers[2, i] == 0.0
            log_p = torch.log_softmax(logits[i].double(), -1)
            assert torch.allclose(whole.numbers[1, i], log_p.max(), atol=5e-5)


class DrawOf:
    """What is drawn for rows, as a decoding step does it."""

    def __init__(self, logits: torch.Tensor, seeds: torch.Tensor, settings: RowSettings) -> None:
        self.settings = settings
        least = cut_triton.least_kept(logits, settings) if settings.cuts else None
        self.numbers = torch.stack(draw_triton.draw(logits, seeds, seeds // 7, settings, least))


def test_of_equal_highest_logits_a_greedy_row_takes_the_first() -> None:
    logits = torch.zeros(3, 9000, device=DEVICE)
    logits[0, [7, 8500]] = 2.0
    logits[1, [4100, 8999]] = 5.0
    logits[2, 3:] = 1.0
    drawn = DrawOf(logits, torch.arange(3, device=DEVICE) + 11, rows_of(SamplingConfig(temperature=0.0), count=3))
    assert drawn.numbers[0].tolist() == [7, 4100, 3] and (drawn.numbers[2] == 0).all()


def test_frequencies_are_the_probabilities() -> None:
    rows = 20_000 if CUDA else 250
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0]).expand(rows, 5).contiguous().to(DEVICE)
    seeds = torch.arange(rows, device=DEVICE)
    ids, _, _, _ = draw_triton.draw(logits, seeds, torch.zeros_like(seeds), heated(1.0, rows))
    found = torch.bincount(ids.long(), minlength=5) / rows
    assert (found - torch.softmax(logits[0], 0)).abs().max() < 2 / rows**0.5  # four standard deviations at most


def test_logits_that_are_not_finite_are_seen() -> None:
    logits = torch.zeros(3, 100, device=DEVICE)
    logits[0, 3], logits[1, 4] = float("nan"), float("inf")
    seeds = torch.arange(3, device=DEVICE)
    ids, logprobs, _, entropies = draw_triton.draw(logits, seeds, seeds, heated(1.0, 3))
    assert not torch.isfinite(logprobs + entropies)[:2].any() and torch.isfinite(logprobs + entropies)[2]
    assert ((ids >= 0) & (ids < 100)).all()


CUTS = [(0, 0.95, 0.0), (0, 0.3, 0.0), (0, 1e-9, 0.0), (20, 1.0, 0.0), (1, 1.0, 0.0), (50, 0.8, 0.02), (0, 1.0, 0.1),
        (0, 1.0, 1.0), (9999, 0.9999, 0.0)]  # top-k, top-p, min-p  # fmt: skip


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "temperature", "scale"), [(7, 3.0, 2.0), (cut_triton.TILE + 1, 0.6, 4.0)])
def test_what_is_kept(
    cuts: tuple[int, float, float], dtype: torch.dtype, width: int, temperature: float, scale: float
) -> None:
    """As float64 and sorting have it; the logits are of either sign, or all of one, or hold impossible tokens."""
    top_k, top_p, min_p = cuts
    sampling = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    generator = torch.Generator().manual_seed(width)
    logits = (torch.randn(4, width, generator=generator) * scale + torch.tensor([[0.0], [40.0], [-40.0], [1.0]])).to(
        DEVICE, dtype
    )
    logits[3, ::2] = -float("inf")
    settings = rows_of(sampling, count=4)
    least = cut_triton.least_kept(logits, settings)
    kept, wanted = logits >= least[:, None], processed(logits, settings) > 0
    kept &= torch.isfinite(logits)
    assert kept.any(-1).all()
    differing = torch.where(kept != wanted, torch.softmax(logits.double() / temperature, -1), 0.0).sum(-1)
    # Sums of fp32 may see the border of the nucleus one token further on: there, less than this is missing or too much.
    assert differing.max() <= (0 if top_p == 1 else 1e-6)


@pytest.mark.parametrize("cuts", CUTS[::2])
@pytest.mark.parametrize(("width", "temperature"), [(11, 1.0), (4100, 0.7)])
def test_drawing_from_what_is_kept(cuts: tuple[int, float, float], width: int, temperature: float) -> None:
    top_k, top_p, min_p = cuts
    logits = (torch.randn(5, width, generator=torch.Generator().manual_seed(width)) * 2).to(DEVICE)
    seeds, positions = torch.arange(5, device=DEVICE) * 7919, torch.arange(5, device=DEVICE)
    settings = rows_of(SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p), count=5)
    least = cut_triton.least_kept(logits, settings)
    ids, logprobs, kept_logprobs, entropies = draw_triton.draw(logits, seeds, positions, settings, least)
    kept = torch.where(logits >= least[:, None], logits.double(), -float("inf"))
    assert in_its_interval(kept, ids.long(), uniforms(seeds, positions), temperature).all()
    log_p, log_kept = (torch.log_softmax(x.double() / temperature, dim=-1) for x in (logits, kept))
    for found, wanted in ((logprobs, log_p), (kept_logprobs, log_kept)):
        assert torch.allclose(found, wanted.gather(1, ids.long()[:, None])[:, 0], atol=5e-5, rtol=1e-6)
    assert torch.allclose(entropies, -(log_p.exp() * log_p).sum(-1), atol=5e-5, rtol=1e-5)


def test_cut_logits_that_are_not_finite_are_seen() -> None:
    logits = torch.zeros(3, 100, device=DEVICE)
    logits[0, 3], logits[1, 4] = float("nan"), float("inf")
    seeds = torch.arange(3, device=DEVICE)
    settings = rows_of(SamplingConfig(top_k=50, top_p=0.9), count=3)
    ids, *numbers = draw_triton.draw(logits, seeds, seeds, settings, cut_triton.least_kept(logits, settings))
    assert all(not torch.isfinite(found[:2]).any() and torch.isfinite(found[2]) for found in numbers)
    assert ((ids >= 0) & (ids < 100)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if CUDA else [torch.float32])
@pytest.mark.parametrize(("tokens", "hidden", "plus"), [(1, 64, 0), (5, 96, 1), (9, 2048, 2)])
def test_sums_and_their_norm_have_the_bits_of_two_kernels(tokens: int, hidden: int, plus: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(tokens)
    y_nh, weight, *others = (
        torch.randn(*shape, generator=generator).to(DEVICE, dtype)
        for shape in ((3 * tokens, hidden), (hidden,), *[(tokens, hidden)] * plus)
    )
    index = torch.randperm(3 * tokens, generator=generator).view(tokens, 3).to(DEVICE)
    index[0, 1] = -1
    out, normed = rows_triton.combine_and_norm(y_nh, index, tuple(others), weight, 1e-6)
    wanted = rows_triton.combine(y_nh, index, tuple(others))
    assert torch.equal(out, wanted)
    assert torch.equal(normed, norm_triton.forward(wanted, None, weight, 1e-6)[0])
