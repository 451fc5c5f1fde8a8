"""Softmax statistics of rows of logits in one pass over them, and their gradient written in their place in a second."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK, WARPS = 4096, 8


@triton.jit
def _cross_entropy_statistics(  # type: ignore[no-untyped-def]
    logits_ptr, column_ptr, owned_ptr, out_ptr, rows, width, inverse_temperature, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    start_of_row = logits_ptr + row * width
    # Each lane keeps the maximum, the sum of exp and the sum of exp * logit of its own columns.
    maximum = tl.full([BLOCK], -1.0e38, dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    weighted = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        logit = tl.load(start_of_row + column, mask=inside, other=0.0).to(tl.float32) * inverse_temperature
        logit = tl.where(inside, logit, -1.0e38)
        larger = tl.maximum(maximum, logit)
        shift = maximum - larger
        shrink = tl.exp(shift)
        weighted = shrink * (weighted + tl.where(total > 0.0, shift * total, 0.0))
        total = total * shrink
        exp = tl.where(inside, tl.exp(logit - larger), 0.0)
        total += exp
        weighted += tl.where(exp > 0.0, exp * (logit - larger), 0.0)
        maximum = larger
    largest = tl.max(maximum, axis=0)
    shift = maximum - largest
    shrink = tl.exp(shift)
    weighted = tl.sum(tl.where(total > 0.0, shrink * (weighted + shift * total), 0.0), axis=0)
    total = tl.sum(total * shrink, axis=0)
    target = tl.load(start_of_row + tl.load(column_ptr + row)).to(tl.float32) * inverse_temperature
    tl.store(out_ptr + row, largest)
    tl.store(out_ptr + rows + row, total)
    tl.store(out_ptr + 2 * rows + row, weighted)
    tl.store(out_ptr + 3 * rows + row, tl.where(tl.load(owned_ptr + row), target, 0.0))


@triton.jit
def _cross_entropy_gradient(  # type: ignore[no-untyped-def]
    logits_ptr, column_ptr, owned_ptr, normaliser_ptr, entropy_ptr, by_logprob_ptr, by_entropy_ptr, width,
    inverse_temperature, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = logits_ptr + row * width + column
    normaliser = tl.load(normaliser_ptr + row)
    by_logprob = tl.load(by_logprob_ptr + row)
    log_p = tl.load(at, mask=inside, other=0.0).to(tl.float32) * inverse_temperature - normaliser
    p = tl.exp(log_p)
    factor = tl.zeros([BLOCK], dtype=tl.float32) + by_logprob
    if ENTROPY:
        factor += tl.load(by_entropy_ptr + row) * (tl.load(entropy_ptr + row) + log_p)
    hit = (column == tl.load(column_ptr + row)) & tl.load(owned_ptr + row)
    gradient = (tl.where(hit, by_logprob, 0.0) - tl.where(p > 0.0, p * factor, 0.0)) * inverse_temperature
    tl.store(at, gradient.to(logits_ptr.dtype.element_ty), mask=inside)


def statistics(
    logits_cv: torch.Tensor, columns: torch.Tensor, owned: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """fp32 [C] each, of x = logits / temperature: the maximum m, sum of exp(x - m), sum of exp(x - m) (x - m), and x at
    `columns` int64 [C] (0 where not `owned`)."""
    rows, width = logits_cv.shape
    out = torch.empty(4, rows, dtype=torch.float32, device=logits_cv.device)
    if rows:
        _cross_entropy_statistics[(rows,)](logits_cv, columns, owned, out, rows, width, 1.0 / temperature, BLOCK=BLOCK, num_warps=WARPS)
    maximum, total, weighted, target = out
    return maximum, total, weighted, target


def gradient_in_place(
    logits_cv: torch.Tensor,
    columns: torch.Tensor,
    owned: torch.Tensor,
    log_normaliser: torch.Tensor,
    entropies: torch.Tensor,
    by_logprob: torch.Tensor,
    by_entropy: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    """Overwrites the logits with the gradient by them; per-row values fp32 [C]."""
    rows, width = logits_cv.shape
    if rows:
        _cross_entropy_gradient[(rows, triton.cdiv(width, BLOCK))](
            logits_cv, columns, owned, log_normaliser, entropies, by_logprob,
            by_logprob if by_entropy is None else by_entropy, width, 1.0 / temperature,
            ENTROPY=by_entropy is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return logits_cv
