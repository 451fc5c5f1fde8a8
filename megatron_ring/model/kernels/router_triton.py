"""From router logits to chosen experts, weights and the sums of the router's losses in one pass, and back in another."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from megatron_ring.model.kernels.dependent import launch_options
from megatron_ring.model.kernels.dependent_triton import begin

TOKENS = 32  # of a program, as many at a time as `at_a_time` says
PART = 256  # columns that a program makes logits of, of few tokens: one after the other they take too long
MANY_TOKENS = 64  # of a program that makes logits of all columns
EXPERTS = 128  # whose logits a program makes, at most: of more it would have no registers for the sums
WARPS, STAGES = 4, 3  # of logits
CHOOSING = 4  # tokens of a program that chooses, at most


@triton.jit
def _choose(logits, maximum, total, weights_ptr, experts_ptr, token, tokens, E, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the K largest of each row of logits [T, E_BLOCK], -1e30 beyond E, and their weights; 1 where one was chosen, 0
    elsewhere. NaN and what is below -1e29 are the least, but above what was chosen before and what lies beyond E: each of
    the K has an expert of its own."""
    expert = tl.arange(0, logits.shape[1])
    left = tl.where(logits > -1e29, logits, tl.where(expert < E, -1e29, -1e30)[None, :])
    place = tl.full(logits.shape, -1, tl.int32)
    normaliser = tl.zeros_like(maximum)
    for k in tl.static_range(K):
        best = tl.max(left, axis=1)
        where = tl.min(tl.where(left == best[:, None], expert[None, :], E - 1), axis=1)
        hit = expert[None, :] == where[:, None]
        place = tl.where(hit, k, place)
        left = tl.where(hit, -2e30, left)
        normaliser += tl.exp(best - maximum)
    if K == 1:
        normaliser = total
    at = token.to(tl.int64)[:, None] * K + place
    real = (token < tokens)[:, None] & (place >= 0)
    tl.store(weights_ptr + at, tl.exp(logits - maximum[:, None]) / normaliser[:, None], mask=real)
    tl.store(experts_ptr + at, tl.zeros_like(at) + expert[None, :], mask=real)
    return tl.where(place >= 0, 1.0, 0.0)


@triton.jit
def _route_logits(  # type: ignore[no-untyped-def]
    x_ptr, w_ptr, parts_ptr, tokens, hidden,
    E: tl.constexpr, T: tl.constexpr, E_BLOCK: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """What PARTS times PART columns add to logits of E_BLOCK experts, those sums added in order: fp32 [programs, T, E]."""
    begin(DEPENDENT)
    share = tl.program_id(1)
    token = tl.program_id(0) * T + tl.arange(0, T)
    expert = tl.program_id(2) * E_BLOCK + tl.arange(0, E_BLOCK)
    column = share * (PARTS * PART) + tl.arange(0, DEPTH)
    x_at = x_ptr + token.to(tl.int64)[None, :] * hidden + column[:, None]
    w_at = w_ptr + expert[:, None] * hidden + column[None, :]
    logits = tl.zeros([E_BLOCK, T], tl.float32)
    added = tl.zeros([E_BLOCK, T], tl.float32)
    for depth in range(0, PARTS * PART, DEPTH):
        inside = column < hidden - depth
        x = tl.load(x_at + depth, mask=(token < tokens)[None, :] & inside[:, None], other=0.0)
        w = tl.load(w_at + depth, mask=(expert < E)[:, None] & inside[None, :], other=0.0)
        logits = tl.dot(w, x, logits, input_precision="ieee")
        if PARTS > 1:
            whole = (depth + DEPTH) % PART == 0
            added = tl.where(whole, added + logits, added)
            logits = tl.where(whole, 0.0, logits)
    if PARTS > 1:
        logits = added
    at = (share * tokens + token)[None, :].to(tl.int64) * E + expert[:, None]
    tl.store(parts_ptr + at, logits, mask=(token < tokens)[None, :] & (expert < E)[:, None])


@triton.jit
def _route_chosen(  # type: ignore[no-untyped-def]
    parts_ptr, logits_ptr, weights_ptr, experts_ptr, tokens,
    E: tl.constexpr, K: tl.constexpr, T: tl.constexpr, E_BLOCK: tl.constexpr, PARTS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The sum of the parts, and the choice."""
    begin(DEPENDENT)
    token = tl.program_id(0) * T + tl.arange(0, T)
    expert = tl.arange(0, E_BLOCK)
    real = (token < tokens)[:, None] & (expert < E)[None, :]
    at = token[:, None].to(tl.int64) * E + expert[None, :]
    logits = tl.zeros([T, E_BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        logits += tl.load(parts_ptr + part * tokens * E + at, mask=real, other=0.0)
    tl.store(logits_ptr + at, logits, mask=real)
    logits = tl.where((expert < E)[None, :], logits, -1e30)
    maximum = tl.max(logits, axis=1)
    total = tl.sum(tl.exp(logits - maximum[:, None]), axis=1)
    _choose(logits, maximum, total, weights_ptr, experts_ptr, token, tokens, E, K)


@triton.jit
def _route_forward(  # type: ignore[no-untyped-def]
    logits_ptr, padding_ptr, weights_ptr, experts_ptr, sums_ptr, tokens,
    E: tl.constexpr, K: tl.constexpr, LOSSES: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, T: tl.constexpr,
    E_BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    program, expert = tl.program_id(0), tl.arange(0, E_BLOCK)
    chosen_sums, p_sums = tl.zeros([E_BLOCK], tl.float32), tl.zeros([E_BLOCK], tl.float32)
    squares, valid_sum = tl.zeros([], tl.float32), tl.zeros([], tl.float32)
    for first in range(0, TOKENS, T):
        token = program * TOKENS + first + tl.arange(0, T)
        real = (token < tokens)[:, None] & (expert < E)[None, :]
        logits = tl.load(logits_ptr + token[:, None].to(tl.int64) * E + expert[None, :], mask=real, other=0.0)
        logits = tl.where((expert < E)[None, :], logits, -1e30)
        maximum = tl.max(logits, axis=1)
        total = tl.sum(tl.exp(logits - maximum[:, None]), axis=1)
        chosen = _choose(logits, maximum, total, weights_ptr, experts_ptr, token, tokens, E, K)
        if LOSSES:
            valid = tl.where(token < tokens, 1.0, 0.0)
            if PADDED:
                valid = tl.where(tl.load(padding_ptr + token, mask=token < tokens, other=1) != 0, 0.0, valid)
            p = tl.exp(logits - maximum[:, None]) / total[:, None]
            lse = maximum + tl.log(total)
            chosen_sums += tl.sum(chosen * valid[:, None], axis=0)
            p_sums += tl.sum(p * valid[:, None], axis=0)
            squares += tl.sum(lse * lse * valid, axis=0)
            valid_sum += tl.sum(valid, axis=0)
    if LOSSES:
        row = sums_ptr + program * (2 * E + 2)
        tl.store(row + expert, chosen_sums, mask=expert < E)
        tl.store(row + E + expert, p_sums, mask=expert < E)
        tl.store(row + 2 * E, squares)
        tl.store(row + 2 * E + 1, valid_sum)


@triton.jit
def _route_backward(  # type: ignore[no-untyped-def]
    logits_ptr, padding_ptr, weights_ptr, experts_ptr, d_weights_ptr, share_ptr, scale_ptr, out_ptr, tokens, balance, z,
    E: tl.constexpr, K: tl.constexpr, LOSSES: tl.constexpr, PADDED: tl.constexpr, SPLIT: tl.constexpr, T: tl.constexpr,
    E_BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * T + tl.arange(0, T)
    expert = tl.arange(0, E_BLOCK)
    inside = token < tokens
    real = inside[:, None] & (expert < E)[None, :]
    logits = tl.load(logits_ptr + token[:, None].to(tl.int64) * E + expert[None, :], mask=real, other=0.0)
    logits = tl.where((expert < E)[None, :], logits, -1e30)
    maximum = tl.max(logits, axis=1)
    exp = tl.exp(logits - maximum[:, None])
    total = tl.sum(exp, axis=1)
    p = exp / total[:, None]
    mean = tl.zeros([T], dtype=tl.float32)
    for k in tl.static_range(K):
        at = token.to(tl.int64) * K + k
        weight = tl.load(weights_ptr + at, mask=inside, other=0.0)
        mean += weight * tl.load(d_weights_ptr + at, mask=inside, other=0.0)
    d = tl.zeros([T, E_BLOCK], dtype=tl.float32)
    for k in tl.static_range(K):
        at = token.to(tl.int64) * K + k
        weight = tl.load(weights_ptr + at, mask=inside, other=0.0)
        by_weight = tl.load(d_weights_ptr + at, mask=inside, other=0.0)
        hit = expert[None, :] == tl.load(experts_ptr + at, mask=inside, other=-1)[:, None]
        if K == 1:  # a probability among all experts
            d += (weight * by_weight)[:, None] * (tl.where(hit, 1.0, 0.0) - p)
        else:
            d += tl.where(hit, (weight * (by_weight - mean))[:, None], 0.0)
    if LOSSES:
        scale = tl.where(inside, 1.0, 0.0) * tl.load(scale_ptr)
        if PADDED:
            scale = tl.where(tl.load(padding_ptr + token, mask=inside, other=1) != 0, 0.0, scale)
        share = tl.load(share_ptr + expert, mask=expert < E, other=0.0)[None, :]
        by_balance = E * (share - tl.sum(share * p, axis=1)[:, None])
        by_z = 2.0 * (maximum + tl.log(total))
        d += scale[:, None] * p * (balance * by_balance + (z * by_z)[:, None])
    if SPLIT:  # two short numbers that add up to the long one
        high = d.to(out_ptr.dtype.element_ty)
        low = (d - high.to(tl.float32)).to(out_ptr.dtype.element_ty)
        at_row = out_ptr + token[:, None].to(tl.int64) * (2 * E) + expert[None, :]
        tl.store(at_row, high, mask=real)
        tl.store(at_row + E, low, mask=real)
    else:
        tl.store(out_ptr + token[:, None].to(tl.int64) * E + expert[None, :], d, mask=real)


@triton.jit
def _route_share(every_ptr, here_ptr, share_ptr, figures_ptr, E: tl.constexpr, K: tl.constexpr, E_BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    expert = tl.arange(0, E_BLOCK)
    counts = tl.load(every_ptr + expert, mask=expert < E, other=0.0)
    share = counts / (tl.maximum(tl.load(every_ptr + 2 * E + 1), 1.0) * K)
    p_sums = tl.load(here_ptr + E + expert, mask=expert < E, other=0.0)
    tl.store(share_ptr + expert, share, mask=expert < E)
    tl.store(figures_ptr, E * tl.sum(share * p_sums, axis=0))
    tl.store(figures_ptr + 1, tl.load(here_ptr + 2 * E))
    tl.store(figures_ptr + 2, tl.load(here_ptr + 2 * E + 1))


def at_a_time(experts: int) -> int:
    """Tokens that a program has at a time, whose probabilities of so many experts fit its registers."""
    return max(1, min(TOKENS, 2048 // triton.next_power_of_2(experts)))


def share(every: torch.Tensor, here: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.router.share_and_figures`."""
    experts = here.numel() // 2 - 1
    share_e, figures = here.new_empty(experts), here.new_empty(3)
    _route_share[(1,)](every, here, share_e, figures, E=experts, K=k, E_BLOCK=triton.next_power_of_2(experts), num_warps=1)
    return share_e, figures


def forward(
    logits_te: torch.Tensor, k: int, padding_t: torch.Tensor | None, losses: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights fp32 [T, k], experts int64 [T, k], and sums over tokens that are no padding fp32 [2E + 2]: how often each
    expert was chosen, its probability, the squared logsumexp, the tokens."""
    tokens, experts = logits_te.shape
    weights = torch.empty(tokens, k, dtype=torch.float32, device=logits_te.device)
    chosen = torch.empty(tokens, k, dtype=torch.int64, device=logits_te.device)
    programs = triton.cdiv(tokens, TOKENS)
    sums = torch.empty(programs, 2 * experts + 2, dtype=torch.float32, device=logits_te.device)
    padding = logits_te if padding_t is None else padding_t.view(torch.uint8)
    _route_forward[(programs,)](
        logits_te, padding, weights, chosen, sums, tokens, E=experts, K=k, LOSSES=losses, PADDED=padding_t is not None,
        TOKENS=TOKENS, T=at_a_time(experts), E_BLOCK=triton.next_power_of_2(experts), num_warps=4, **launch_options(),
    )  # fmt: skip
    return weights, chosen, sums.sum(0) if losses else sums[0]


def expert_block(experts: int) -> int:
    """Experts whose logits a program makes. Microseconds of 8,192 tokens, in programs of 64, of 128 and of all experts: 256
    experts 28, 25, 39; 1,024 experts 114, 96, 1,179; by torch.mm 14 and 54; 64 experts 9.8, by torch.mm 8.7 (H200)."""
    return max(16, min(EXPERTS, triton.next_power_of_2(experts)))


def depth_of(block: int) -> int:
    """Columns that are multiplied at a time."""
    return min(128, 8192 // block)


def few_tokens(tokens: int) -> int:
    """Of so many, those whose logits a program makes, in parts of the columns. Microseconds with the choice, 64 experts, 16
    and 32 tokens a program: 64 tokens 3.3 and 3.5, 512 4.5 and 4.2, 1,024 6.7 and 5.3 (H200)."""
    return 16 if tokens <= 256 else 32


def logits(x_th: torch.Tensor, weight_eh: torch.Tensor) -> torch.Tensor:
    """Logits fp32 [T, E] of bf16 tokens, with the bits of `few`: a router that trains chooses as the sampler's does."""
    (tokens, hidden), experts = x_th.shape, weight_eh.shape[0]
    out = torch.empty(tokens, experts, dtype=torch.float32, device=x_th.device)
    block = expert_block(experts)
    if tokens:
        _route_logits[(triton.cdiv(tokens, MANY_TOKENS), 1, triton.cdiv(experts, block))](
            x_th.contiguous(), weight_eh, out, tokens, hidden, E=experts, T=MANY_TOKENS, E_BLOCK=block, PART=PART,
            PARTS=triton.cdiv(hidden, PART), DEPTH=depth_of(block), num_warps=WARPS, num_stages=STAGES, **launch_options(),
        )  # fmt: skip
    return out


def few(x_th: torch.Tensor, weight_eh: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights fp32 [T, k], experts int64 [T, k] and logits fp32 [T, E] of few contiguous tokens; bf16 products are added
    up in fp32, parts of the columns one after the other. Without gradients."""
    (tokens, hidden), experts = x_th.shape, weight_eh.shape[0]
    logits = torch.empty(tokens, experts, dtype=torch.float32, device=x_th.device)
    weights = torch.empty(tokens, k, dtype=torch.float32, device=x_th.device)
    chosen = torch.empty(tokens, k, dtype=torch.int64, device=x_th.device)
    block, rows, parts = expert_block(experts), few_tokens(tokens), triton.cdiv(hidden, PART)
    choosing = min(CHOOSING, at_a_time(experts))
    parts_pte = torch.empty(parts, tokens, experts, dtype=torch.float32, device=x_th.device)
    _route_logits[(triton.cdiv(tokens, rows), parts, triton.cdiv(experts, block))](
        x_th, weight_eh, parts_pte, tokens, hidden, E=experts, T=rows, E_BLOCK=block, PART=PART, PARTS=1,
        DEPTH=depth_of(block), num_warps=WARPS, num_stages=STAGES, **launch_options(),
    )  # fmt: skip
    _route_chosen[(triton.cdiv(tokens, choosing),)](
        parts_pte, logits, weights, chosen, tokens, E=experts, K=k, T=choosing,
        E_BLOCK=max(16, triton.next_power_of_2(experts)), PARTS=parts, num_warps=4, **launch_options(),
    )  # fmt: skip
    return weights, chosen, logits


def backward(
    logits_te: torch.Tensor, weights_tk: torch.Tensor, experts_tk: torch.Tensor, d_weights_tk: torch.Tensor,
    padding_t: torch.Tensor | None, share_e: torch.Tensor | None, scale: torch.Tensor, balance: float, z: float,
    split: torch.dtype | None,
) -> torch.Tensor:  # fmt: skip
    """Gradient by the logits: fp32 [T, E], or with `split` two numbers of that dtype side by side, [T, 2E], that add up to
    it. `share_e` None: without the losses' part."""
    tokens, experts = logits_te.shape
    shape = (tokens, experts) if split is None else (tokens, 2 * experts)
    out = torch.empty(shape, dtype=split or torch.float32, device=logits_te.device)
    rows = at_a_time(experts)
    _route_backward[(triton.cdiv(tokens, rows),)](
        logits_te, logits_te if padding_t is None else padding_t.view(torch.uint8), weights_tk, experts_tk, d_weights_tk,
        logits_te if share_e is None else share_e, scale, out, tokens, balance, z, E=experts, K=weights_tk.shape[1],
        LOSSES=share_e is not None, PADDED=padding_t is not None, SPLIT=split is not None, T=rows,
        E_BLOCK=triton.next_power_of_2(experts), num_warps=4,
    )  # fmt: skip
    return out
