"""A matrix in FP8, one scale for each of its rows.

In e4m3 (3 bits of mantissa, 448 at most) with powers of two as scales, for a weight [..., rows b, columns a]:

    weight[b, a] = value[b, a] * scale[b]

A row needs no finer blocks. e4m3 has its full precision down to 2^-13 of the row's largest weight: the error is at most 2^-4
of a weight, or 2^-17 of the largest one. A power of two changes no bit of a mantissa: bf16 holds the product exactly, and a
part of a matrix that is cut over ranks gets the values of the whole, whichever weight is its largest, but for weights below
2^-13 of the largest of the whole.

Values lie in words of four, 32 words for a block of 128 columns: byte i of word j is column 32 * i + j. So a kernel that
takes words as they lie has, of each byte, 32 columns in a row, as the tensor cores want them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_ring.config.declarations import FP8_BLOCK

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
LEAST_EXPONENT = -110  # of a scale: what is smaller by far than any weight in use counts as 0
WORDS = FP8_BLOCK // 4  # that hold a block of columns
AT_A_TIME = 1 << 26  # weights that are quantised at a time, so that little memory is needed beside them


@dataclass(frozen=True)
class Fp8Matrix:
    """`words` int32 [..., b, words of a row], contiguous; `scales` fp32 [..., b]; the `columns` that rows have."""

    words: torch.Tensor
    scales: torch.Tensor
    columns: int

    @classmethod
    def empty(cls, *shape: int, device: torch.device) -> Fp8Matrix:
        *rows, columns = shape
        words = torch.empty(*rows, words_of(columns), dtype=torch.int32, device=device)
        return cls(words, torch.empty(rows, dtype=torch.float32, device=device), columns)

    @classmethod
    def of(cls, weight: torch.Tensor) -> Fp8Matrix:
        """`weight`, bf16 or fp32 [..., b, a], quantised."""
        made = cls.empty(*weight.shape, device=weight.device)
        made.refill(weight)
        return made

    @torch.no_grad()
    def refill(self, weight: torch.Tensor) -> None:
        """Quantise a weight of the same shape into the memory of this one."""
        rows_ba, words_bw, scales_b = weight.flatten(0, -2), self.words.flatten(0, -2), self.scales.flatten()
        step = max(1, AT_A_TIME // weight.shape[-1])
        for start in range(0, len(rows_ba), step):
            part = slice(start, start + step)
            scales_b[part] = row_scales(rows_ba[part])
            values = (rows_ba[part] * (1 / scales_b[part]).to(weight.dtype)[:, None]).to(E4M3)
            words_bw[part] = _words(values.view(torch.uint8))

    def wide(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights [..., b, a] that it stands for, exactly, in bf16 or fp32."""
        if self.words.is_cuda:
            from megatron_ring.model.kernels import few_fp8_triton

            return few_fp8_triton.wide(self.words, self.scales, self.columns, dtype)
        values = self.words.view(torch.uint8).unflatten(-1, (-1, WORDS, 4)).transpose(-1, -2).flatten(-3)
        return values[..., : self.columns].view(E4M3).to(dtype) * self.scales.to(dtype)[..., None]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scales.shape, self.columns)

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.scales.nbytes


Weight = torch.Tensor | Fp8Matrix


def widened(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """The weight as torch's products want it."""
    return weight.wide(dtype) if isinstance(weight, Fp8Matrix) else weight


def words_of(columns: int) -> int:
    """Words of a row with so many columns."""
    return -(-columns // FP8_BLOCK) * WORDS


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


def _words(bytes_ba: torch.Tensor) -> torch.Tensor:
    """int32 [b, words] of bytes uint8 [b, a]; zeros behind the last."""
    behind = -bytes_ba.shape[1] % FP8_BLOCK
    blocks = torch.nn.functional.pad(bytes_ba, (0, behind)).unflatten(1, (-1, 4, WORDS))
    return blocks.transpose(-1, -2).contiguous().flatten(1).view(torch.int32)
