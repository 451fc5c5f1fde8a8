"""The Triton kernels against float64, on the GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

import pytest
import torch

CUDA = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed")

from megatron_ring.model.kernels import (  # noqa: E402
    norm_triton,
    rope_triton,
    router_triton,
    rows_triton,
    swiglu_triton,
    vocabulary_triton,
)
from megatron_ring.training import adamw_triton  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = [torch.float32, torch.bfloat16]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape))
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative, by norms; NaN never passes as it compares false."""
    return ((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)).item()


def allowed(dtype: torch.dtype) -> float:
    if dtype is torch.float32:
        return 5e-6
    return 4e-3 if CUDA else 8e-3  # the interpreter cuts where a GPU rounds


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (7, 96), (13, 2048), (700, 128)])
@pytest.mark.parametrize("adds", [False, True])
def test_norm(monkeypatch: pytest.MonkeyPatch, rows: int, width: int, adds: bool, dtype: torch.dtype) -> None:
    if rows == 700 and not CUDA:  # interpreting takes seconds: fewer rows, of which a program still has several
        rows = 50
        monkeypatch.setattr(norm_triton, "PROGRAMS", 16)
    x, r, w = draw(rows, width, dtype=dtype), draw(rows, width, dtype=dtype, seed=1), draw(width, dtype=dtype, seed=2)
    y, total, rstd = norm_triton.forward(x, r if adds else None, w, 1e-6)
    wanted_total = x + r if adds else x
    assert error(total, wanted_total) < (1e-30 if CUDA or not adds else allowed(dtype))
    s, w64 = total.double().requires_grad_(), w.double().requires_grad_()
    wanted = s / (s.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w64
    assert error(y, wanted) < allowed(dtype)
    dy, ds = draw(rows, width, dtype=dtype, seed=3), draw(rows, width, dtype=dtype, seed=4)
    ((wanted * dy.double()).sum() + (s * ds.double()).sum() * adds).backward()
    dx, dw = norm_triton.backward(dy, ds if adds else None, total, w, rstd)
    assert error(dx, s.grad) < allowed(dtype)
    assert error(dw, w64.grad) < allowed(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "groups", "queries", "d"), [(1, 1, 1, 2), (5, 2, 2, 32), (9, 4, 4, 128), (3, 3, 5, 48)])
def test_rope(tokens: int, groups: int, queries: int, d: int, dtype: torch.dtype) -> None:
    qkv = draw(tokens, groups, queries + 2, d, dtype=dtype)
    angles = draw(tokens, 1, d // 2, seed=1)
    cos, sin = torch.cat((angles.cos(),) * 2, -1), torch.cat((angles.sin(),) * 2, -1)
    q = qkv.new_empty(tokens, groups * queries, d)
    k, v = qkv.new_empty(tokens, groups, d), qkv.new_empty(tokens, groups, d)
    rope_triton.split(qkv, q, k, v, cos, sin, backward=False)
    whole = qkv.double().requires_grad_()

    def turn(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * cos.double() + torch.cat((-second, first), -1) * sin.double()

    wanted = turn(whole[:, :, :-2].flatten(1, 2)), turn(whole[:, :, -2]), whole[:, :, -1]
    for found, expected in zip((q, k, v), wanted, strict=True):
        assert error(found, expected) < allowed(dtype)
    gradients = [draw(*x.shape, dtype=dtype, seed=i) for i, x in enumerate(wanted)]
    sum((x * g.double()).sum() for x, g in zip(wanted, gradients, strict=True)).backward()
    d_qkv = torch.full_like(qkv, float("nan"))
    rope_triton.split(d_qkv, *gradients, cos, sin, backward=True)
    assert error(d_qkv, whole.grad) < allowed(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 4), (6, 96), (11, 1408), (3, 5000)])
@pytest.mark.parametrize("weighted", [False, True])
def test_swiglu(rows: int, width: int, weighted: bool, dtype: torch.dtype) -> None:
    gate_up = draw(rows, 2 * width, dtype=dtype, scale=2.0)
    weights = draw(rows, seed=1).abs() if weighted else None
    out = swiglu_triton.forward(gate_up, weights)
    both = gate_up.double().requires_grad_()
    w64 = torch.ones(rows, device=DEVICE).double() if weights is None else weights.double()
    w64.requires_grad_()
    gate, up = both.chunk(2, -1)
    wanted = torch.nn.functional.silu(gate) * up * w64[:, None]
    d = draw(rows, width, dtype=dtype, seed=2)
    (wanted * d.double()).sum().backward()
    d_gate_up, d_weights, again = swiglu_triton.backward(d, gate_up, weights, again=True)
    assert out.shape == again.shape == (rows, width)
    if rows:
        assert error(out, wanted) < allowed(dtype)
        assert torch.equal(out, again)
        assert error(d_gate_up, both.grad) < allowed(dtype)
        assert (d_weights is None) is not weighted
        if d_weights is not None:
            assert error(d_weights, w64.grad) < 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "k", "width"), [(1, 1, 8), (9, 2, 96), (17, 6, 2048), (4, 3, 5000)])
def test_rows(tokens: int, k: int, width: int, dtype: torch.dtype) -> None:
    x = draw(tokens, width, dtype=dtype)
    order = torch.randperm(tokens * k, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    assert torch.equal(rows_triton.gather(x, order // k), x[order // k])
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel(), device=DEVICE)
    assert torch.equal(rows_triton.spread(x, back.view(tokens, k)), x[order // k])
    y = draw(tokens * k, width, dtype=dtype, seed=2)
    plus = (draw(tokens, width, dtype=dtype, seed=3), draw(tokens, width, dtype=dtype, seed=4))
    for count in range(3):
        wanted = y.double()[back].view(tokens, k, width).sum(1) + sum(p.double() for p in plus[:count])
        assert error(rows_triton.combine(y, back.view(tokens, k), plus[:count]), wanted) < allowed(dtype)


@pytest.mark.parametrize(
    ("slots", "experts", "used"),
    [(0, 4, 4), (1, 1, 1), (300, 8, 8), (1030, 60, 7), (2000, 64, 1), (515, 200, 200), (66000, 2, 2)],
)
def test_sort(slots: int, experts: int, used: int) -> None:
    """Experts without slots, one that has all, more blocks than one pass of the scan takes, no power of two."""
    chosen = torch.randint(used, (slots,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    chosen = chosen * (experts // used)
    order, back, ends = rows_triton.sort(chosen, experts)
    assert torch.equal(order, chosen.sort(stable=True).indices)
    assert torch.equal(back[order], torch.arange(slots, device=DEVICE))
    assert torch.equal(ends, torch.bincount(chosen, minlength=experts).cumsum(0).int())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("width", [5, 511, 4096, 9001])
def test_vocabulary(width: int, temperature: float, dtype: torch.dtype) -> None:
    rows, impossible = 6, width // 3
    logits = draw(rows, width, dtype=dtype, scale=4.0)
    logits[0] = -1e30  # a rank whose columns all pad the vocabulary
    logits[:, width - impossible :] = -1e30
    logits[1, 0] = 60.0  # one class takes all
    columns = torch.arange(rows, device=DEVICE) % (width - impossible)
    columns[-2], columns[-1] = width, -3  # of other ranks
    owned = torch.tensor([True] * (rows - 2) + [False] * 2, device=DEVICE)
    maximum, total, weighted, target = vocabulary_triton.statistics(logits, columns, temperature)
    x = (logits.double() / temperature)[1:].requires_grad_()
    top = x.detach().max(-1, keepdim=True).values
    assert torch.allclose(maximum[1:].double(), top[:, 0], rtol=1e-6)
    assert torch.isfinite(torch.stack((maximum, total, weighted, target))).all()
    assert error(total[1:], (x - top).exp().sum(-1)) < 2e-6
    assert error(weighted[1:], ((x - top).exp() * (x - top)).sum(-1)) < 2e-5
    at = columns[1:, None].clamp(0, width - 1)
    picked = x.gather(1, at)[:, 0] * owned[1:]
    assert error(target[1:], picked) < 2e-6

    log_p = torch.log_softmax(x, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    by_logprob, by_entropy = draw(rows, seed=5), draw(rows, seed=6)
    finished = vocabulary_triton.finished_statistics(logits[:-2], columns[:-2], temperature)
    for found, wanted in zip(finished, (log_p.gather(1, at)[:, 0], entropy, torch.logsumexp(x, -1)), strict=True):
        assert (found[1:].double() - wanted[:-2]).abs().max() < 2e-5
    loss = (log_p.gather(1, at)[:, 0] * by_logprob[1:].double() * owned[1:]).sum()
    # A row whose target is on another rank still has that target's gradient by the normaliser.
    loss = loss - (torch.logsumexp(x, -1) * by_logprob[1:].double() * ~owned[1:]).sum()
    (loss + (entropy * by_entropy[1:].double()).sum()).backward()
    found = vocabulary_triton.gradient_in_place(
        logits[1:].clone(), columns[1:], torch.logsumexp(x.detach(), -1).float(), entropy.detach().float(),
        by_logprob[1:], by_entropy[1:], temperature,
    )  # fmt: skip
    assert error(found, x.grad / temperature) < allowed(dtype)


@pytest.mark.parametrize(
    ("tokens", "hidden", "experts", "k"),
    [(1, 64, 4, 1), (16, 200, 8, 2), (137, 128, 60, 6), (18, 600, 8, 2), (80, 2048, 64, 6), (260, 300, 200, 6)],
)
@pytest.mark.parametrize("dtype", DTYPES if CUDA else DTYPES[:1])  # the interpreter cannot multiply in bf16
def test_router_of_few_tokens(tokens: int, hidden: int, experts: int, k: int, dtype: torch.dtype) -> None:
    """Products of parts of the columns, and the choice, are those of whole products; the trainer's have the same bits."""
    x, weight = draw(tokens, hidden, dtype=dtype), draw(experts, hidden, dtype=dtype)
    weights, chosen, logits = router_triton.few(x, weight, k)
    wanted = x.double() @ weight.double().t()
    assert error(logits, wanted) < 2e-6
    whole = router_triton.logits(x, weight)
    assert torch.equal(whole, logits) or (not CUDA and error(whole, logits) < 1e-6)
    wanted_weights, wanted_chosen, _ = router_triton.forward(logits, k, None, False)
    assert torch.equal(chosen, wanted_chosen) and torch.equal(chosen, wanted.topk(k).indices)
    assert torch.equal(weights, wanted_weights)


@pytest.mark.parametrize("experts", [4, 60, 300])  # of 300 a program makes logits of 128, with 64 columns at a time
def test_both_routers_add_up_the_same_parts(experts: int) -> None:
    """Sums that are exact but for their order: 2^24 + 2 where 256 columns are added up first, 2^24 where all go in turn."""
    x, weight = torch.zeros(20, 700, device=DEVICE), torch.ones(experts, 700, device=DEVICE)
    x[:, 0], x[:, [260, 500]] = 2.0**24, 1.0
    if CUDA:
        x, weight = x.bfloat16(), weight.bfloat16()
    for found in (router_triton.logits(x, weight), router_triton.few(x, weight, 2)[2]):
        assert (found == 2**24 + 2).all()


@pytest.mark.parametrize("split", [None, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 4, 1), (50, 8, 2), (33, 60, 6), (40, 64, 1), (37, 300, 6)])
def test_router(tokens: int, experts: int, k: int, padded: bool, split: torch.dtype | None) -> None:
    logits = draw(tokens, experts, scale=2.0)
    logits[0] = 0.0  # all alike: the first ones are chosen
    padding = torch.arange(tokens, device=DEVICE) >= max(1, tokens - 7) if padded else None
    weights, chosen, sums = router_triton.forward(logits, k, padding, True)
    x = logits.double().requires_grad_()
    p = torch.softmax(x, -1)
    assert chosen[0].tolist() == list(range(k))
    top = x.topk(k).indices[1:]
    assert torch.equal(chosen[1:], top)
    wanted = p.gather(1, chosen)
    wanted = wanted / wanted.sum(-1, keepdim=True) if k > 1 else wanted
    assert error(weights, wanted) < 2e-6
    valid = torch.ones(tokens, device=DEVICE).double() if padding is None else (~padding).double()
    counts = torch.zeros_like(p).scatter(1, chosen, 1.0).mul(valid[:, None]).sum(0)
    lse = torch.logsumexp(x, -1)
    expected = torch.cat((counts, (p * valid[:, None]).sum(0), (lse.square() * valid).sum()[None], valid.sum()[None]))
    assert error(sums, expected) < 2e-6

    every = sums * 3.0 + 1.0
    found_share, figures = router_triton.share(every, sums, k)
    wanted_share = every[:experts].double() / every[-1].double() / k
    assert error(found_share, wanted_share) < 2e-6
    wanted_balance = experts * (wanted_share @ expected[experts:-2])
    assert error(figures, torch.stack((wanted_balance, expected[-2], expected[-1]))) < 2e-6

    share, d, scale = draw(experts, seed=1).abs(), draw(tokens, k, seed=2), torch.full((1,), 0.5, device=DEVICE)
    balance = experts * ((p @ share.double()) * valid).sum()
    loss = (wanted * d.double()).sum() + 0.5 * (0.3 * balance + 0.02 * (lse.square() * valid).sum())
    loss.backward()
    found = router_triton.backward(logits, weights, chosen, d, padding, share, scale, 0.3, 0.02, split)
    if split is not None:
        assert found.dtype is split
        found = found[:, :experts].double() + found[:, experts:].double()
    assert error(found, x.grad) < (5e-6 if split is None else 5e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 5000])
def test_accumulating_and_scaling(count: int, dtype: torch.dtype) -> None:
    total, x = draw(count), draw(count, dtype=dtype, seed=1)
    wanted = total + x.float()
    adamw_triton.accumulate(total, x)
    assert torch.equal(total, wanted)
    adamw_triton.accumulate(total, x, first=True)
    assert torch.equal(total, x.float())
    found = vocabulary_triton.scaled(draw(count), torch.full((), 0.3, device=DEVICE), dtype)
    assert found.dtype is dtype
    assert error(found, draw(count).double() * 0.3) < allowed(dtype)


@pytest.mark.parametrize("copies", [False, True])
def test_adamw(copies: bool) -> None:
    """Three updates against torch's in float64, gradients halved as by clipping, moments in fp32."""
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    start = draw(5000)
    exact = start.double().requires_grad_()
    theirs = torch.optim.AdamW([exact], **settings, weight_decay=0.1)
    mine, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    copy = torch.zeros_like(start, dtype=torch.bfloat16) if copies else None
    for step in range(1, 4):
        gradient = draw(5000, seed=step)
        exact.grad = gradient.double() * 0.5
        theirs.step()
        scale = torch.full((), 0.5, device=DEVICE)
        adamw_triton.adamw(mine, gradient, first, second, scale, copy, **settings, decay=0.1, step=step)
    assert error(mine - start, exact - start.double()) < 1e-5
    if copy is not None:
        assert error(copy, mine) < allowed(torch.bfloat16)


def test_logits_that_are_not_numbers_still_choose_experts() -> None:
    """Such a token's hidden states are none either, and what comes of them is seen; the places must be a permutation."""
    logits = draw(8, 6)
    logits[2], logits[5, 1] = float("nan"), float("nan")
    _, experts, _ = router_triton.forward(logits, 2, None, False)
    assert ((experts >= 0) & (experts < 6)).all()
    order, _, _ = rows_triton.sort(experts.flatten(), 6)
    assert torch.equal(order.sort().values, torch.arange(16, device=DEVICE))


@pytest.mark.parametrize("experts", [4, 6])
@pytest.mark.parametrize("least", [float("nan"), float("-inf"), -1e32])
@pytest.mark.parametrize("finite", [0, 1, 2])
def test_a_token_gets_as_many_experts_as_any_whatever_its_logits(experts: int, least: float, finite: int) -> None:
    """Others of their rows are never left as memory was: each is another expert, the largest logit's first."""
    logits = torch.full((2, experts), least, device=DEVICE)
    logits[:, experts - finite :] = torch.arange(finite, 0, -1, device=DEVICE)
    for k in (1, 2, 3):
        _, chosen, _ = router_triton.forward(logits, k, None, False)
        wanted = [*range(experts - finite, experts), *range(experts - finite)][:k]
        assert chosen.tolist() == [wanted, wanted]


@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.03])
def test_low_temperatures_have_an_entropy(temperature: float) -> None:
    logits = draw(3, 1000)
    columns = torch.tensor([1, 2, 3], device=DEVICE)
    largest, total, weighted, target = vocabulary_triton.statistics(logits, columns, temperature)
    log_p = torch.log_softmax(logits.double() / temperature, dim=-1)
    assert torch.allclose(total.log() - weighted / total, -(log_p.exp() * log_p).sum(-1).float(), atol=1e-4)
    assert torch.allclose(target - largest - total.log(), log_p.gather(1, columns[:, None])[:, 0].float(), rtol=1e-5)
