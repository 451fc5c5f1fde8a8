"""A matrix in FP8, one scale for each of its rows.

In e4m3 (3 bits of mantissa, 448 at most) with powers of two as scales, for a weight [..., rows b, columns a]:

    weight[b, a] = value[b, a] * scale[b]

A row needs no finer blocks. e4m3 has its full precision down to 2^-13 of the row's largest weight: the error is at most 2^-4
of a weight, or 2^-17 of the largest one. A power of two changes no bit of a mantissa: bf16 holds the product exactly, and a
part of a matrix that is cut over ranks gets the values of the whole, whichever weight is its largest, but for weights below
2^-13 of the largest of the whole.

Rows lie as they are, padded with zeros to blocks of 128 columns, so that kernels read whole blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_ring.config.declarations import FP8_BLOCK

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
LEAST_EXPONENT = -110  # of a scale: what is smaller by far than any weight in use counts as 0
AT_A_TIME = 1 << 26  # weights that are quantised at a time, so that little memory is needed beside them


@dataclass(frozen=True)
class Fp8Matrix:
    """`values` e4m3 [..., b, a padded], contiguous, zeros behind the `columns` that rows have; `scales` fp32 [..., b].
    `parts`: how many values of e4m3 stand for an activation where the kernels for few tokens multiply with it: 2, or 1."""

    values: torch.Tensor
    scales: torch.Tensor
    columns: int
    parts: int = 2

    @classmethod
    def empty(cls, *shape: int, device: torch.device, parts: int = 2) -> Fp8Matrix:
        """Of zeros, without scales yet."""
        *rows, columns = shape
        values = torch.zeros(*rows, padded(columns), dtype=torch.uint8, device=device).view(E4M3)
        return cls(values, torch.empty(rows, dtype=torch.float32, device=device), columns, parts)

    @classmethod
    def of(cls, weight: torch.Tensor, parts: int = 2) -> Fp8Matrix:
        """`weight`, bf16 or fp32 [..., b, a], quantised."""
        made = cls.empty(*weight.shape, device=weight.device, parts=parts)
        made.refill(weight)
        return made

    @torch.no_grad()
    def refill(self, weight: torch.Tensor) -> None:
        """Quantise a weight of the same shape into the memory of this one."""
        rows_ba, values_ba, scales_b = weight.flatten(0, -2), self.values.flatten(0, -2), self.scales.flatten()
        step = max(1, AT_A_TIME // weight.shape[-1])
        for start in range(0, len(rows_ba), step):
            part = slice(start, start + step)
            scales_b[part] = row_scales(rows_ba[part])
            values_ba[part, : self.columns] = rows_ba[part] * (1 / scales_b[part]).to(weight.dtype)[:, None]

    def wide(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights [..., b, a] that it stands for, exactly, in bf16 or fp32."""
        if self.values.is_cuda:
            from megatron_ring.model.kernels import few_fp8_triton

            return few_fp8_triton.wide(self, dtype)
        return self.values[..., : self.columns].to(dtype) * self.scales.to(dtype)[..., None]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scales.shape, self.columns)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


Weight = torch.Tensor | Fp8Matrix


def widened(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """The weight as torch's products want it."""
    return weight.wide(dtype) if isinstance(weight, Fp8Matrix) else weight


def padded(columns: int) -> int:
    """Values of a row with so many columns."""
    return -(-columns // FP8_BLOCK) * FP8_BLOCK


def row_scales(rows_ba: torch.Tensor) -> torch.Tensor:
    """fp32 [b]: the least power of two that brings a row's largest weight to `LARGEST` or below; 1 for a row of zeros. NaN
    where a row has a weight that is not finite, so that everything made of it is NaN."""
    low, high = rows_ba.aminmax(dim=-1)
    largest = torch.maximum(-low, high).float()
    mantissa, exponent = torch.frexp(largest / LARGEST)
    exponent = (exponent - (mantissa <= 0.5).int()).clamp_min(LEAST_EXPONENT)
    scales = ((exponent + 127) << 23).view(torch.float32)  # by its bits: a GPU's power may be off by some of the last
    scales = torch.where(largest == 0, 1.0, scales)
    return torch.where(torch.isfinite(largest), scales, torch.nan)
