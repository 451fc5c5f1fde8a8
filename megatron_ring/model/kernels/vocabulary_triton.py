"""Softmax statistics of rows of logits in one pass over them, and their gradient written in their place in a second."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

STATISTICS_BLOCK, BLOCK, WARPS = 1024, 4096, 8


@triton.jit
def _cross_entropy_statistics(  # type: ignore[no-untyped-def]
    logits_ptr, column_ptr, out_ptr, inverse_temperature_ptr, rows, width, inverse_temperature, BY_ROW: tl.constexpr,
    FINISH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start_of_row = logits_ptr + row * width
    if BY_ROW:
        inverse_temperature = tl.load(inverse_temperature_ptr + row)
    # Each lane keeps the maximum, the sum of exp and the sum of exp * logit of its own columns.
    # Four columns at a time: one change of the maximum for all of them. Behind the row stands -1e37: exp makes it 0, and
    # 0 * -1e37 is 0.
    maximum = tl.full([BLOCK], -1.0e30, dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    weighted = tl.zeros([BLOCK], dtype=tl.float32)
    lane = tl.arange(0, BLOCK)
    for start in range(0, width, 4 * BLOCK):
        at = start_of_row + start + lane
        left = width - start
        a = tl.load(at, mask=lane < left, other=-1.0e37).to(tl.float32) * inverse_temperature
        b = tl.load(at + BLOCK, mask=lane + BLOCK < left, other=-1.0e37).to(tl.float32) * inverse_temperature
        c = tl.load(at + 2 * BLOCK, mask=lane + 2 * BLOCK < left, other=-1.0e37).to(tl.float32) * inverse_temperature
        d = tl.load(at + 3 * BLOCK, mask=lane + 3 * BLOCK < left, other=-1.0e37).to(tl.float32) * inverse_temperature
        # A low temperature would carry what stands behind the row to -inf.
        a, b, c, d = tl.maximum(a, -1.0e37), tl.maximum(b, -1.0e37), tl.maximum(c, -1.0e37), tl.maximum(d, -1.0e37)
        larger = tl.maximum(maximum, tl.maximum(tl.maximum(a, b), tl.maximum(c, d)))
        shift = maximum - larger
        shrink = tl.exp(shift)
        weighted = shrink * (weighted + shift * total)
        total = total * shrink
        maximum = larger
        a, b, c, d = a - larger, b - larger, c - larger, d - larger
        exp_a, exp_b, exp_c, exp_d = tl.exp(a), tl.exp(b), tl.exp(c), tl.exp(d)
        total += (exp_a + exp_b) + (exp_c + exp_d)
        weighted += (exp_a * a + exp_b * b) + (exp_c * c + exp_d * d)
    largest = tl.max(maximum, axis=0)
    shift = maximum - largest
    shrink = tl.exp(shift)
    weighted = tl.sum(shrink * (weighted + shift * total), axis=0)
    total = tl.sum(total * shrink, axis=0)
    column = tl.load(column_ptr + row)
    owned = (column >= 0) & (column < width)
    target = tl.load(start_of_row + column, mask=owned, other=0.0).to(tl.float32) * inverse_temperature
    if FINISH:
        log_total = tl.log(total)
        tl.store(out_ptr + row, target - largest - log_total)
        tl.store(out_ptr + rows + row, log_total - weighted / total)
        tl.store(out_ptr + 2 * rows + row, largest + log_total)
    else:
        tl.store(out_ptr + row, largest)
        tl.store(out_ptr + rows + row, total)
        tl.store(out_ptr + 2 * rows + row, weighted)
        tl.store(out_ptr + 3 * rows + row, target)


@triton.jit
def _cross_entropy_gradient(  # type: ignore[no-untyped-def]
    logits_ptr, column_ptr, normaliser_ptr, entropy_ptr, by_logprob_ptr, by_entropy_ptr, width,
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
    hit = column == tl.load(column_ptr + row)
    gradient = (tl.where(hit, by_logprob, 0.0) - tl.where(p > 0.0, p * factor, 0.0)) * inverse_temperature
    tl.store(at, gradient.to(logits_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _cross_entropy_scale(x_ptr, scale_ptr, out_ptr, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * tl.load(scale_ptr)
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=inside)


def statistics(
    logits_cv: torch.Tensor, columns: torch.Tensor, temperature: float | torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """fp32 [C] each, of x = logits / temperature (one for all, or float64 [C]): the maximum m, sum of exp(x - m), sum of
    exp(x - m) (x - m), and x at `columns` int64 [C] (0 where that is none of the row's)."""
    return tuple(_statistics(logits_cv, columns, temperature, 4))


def finished_statistics(
    logits_cv: torch.Tensor, columns: torch.Tensor, temperature: float | torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """As `statistics`, where the row has all classes: log-probability of `columns`, entropy, logsumexp of
    logits / temperature."""
    return tuple(_statistics(logits_cv, columns, temperature, 3))


def _statistics(
    logits_cv: torch.Tensor, columns: torch.Tensor, temperature: float | torch.Tensor, results: int
) -> torch.Tensor:
    rows, width = logits_cv.shape
    out = torch.empty(results, rows, dtype=torch.float32, device=logits_cv.device)
    by_row = isinstance(temperature, torch.Tensor)
    inverse_of_row = (1.0 / temperature).float() if isinstance(temperature, torch.Tensor) else out
    if rows:
        _cross_entropy_statistics[(rows,)](
            logits_cv, columns, out, inverse_of_row, rows, width, 1.0 if by_row else 1.0 / temperature, BY_ROW=by_row,
            FINISH=results == 3, BLOCK=STATISTICS_BLOCK, num_warps=4,
        )  # fmt: skip
    return out


def gradient_in_place(
    logits_cv: torch.Tensor,
    columns: torch.Tensor,
    log_normaliser: torch.Tensor,
    entropies: torch.Tensor,
    by_logprob: torch.Tensor,
    by_entropy: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    """Overwrites the logits with the gradient by them; per-row values fp32 [C], columns as in `statistics`."""
    rows, width = logits_cv.shape
    if rows:
        _cross_entropy_gradient[(rows, triton.cdiv(width, BLOCK))](
            logits_cv, columns, log_normaliser, entropies, by_logprob,
            by_logprob if by_entropy is None else by_entropy, width, 1.0 / temperature,
            ENTROPY=by_entropy is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return logits_cv


def scaled(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x * scale in `dtype`; x contiguous, scale one element."""
    out = torch.empty_like(x, dtype=dtype)
    if x.numel():
        _cross_entropy_scale[(triton.cdiv(x.numel(), BLOCK),)](x, scale, out, x.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return out
