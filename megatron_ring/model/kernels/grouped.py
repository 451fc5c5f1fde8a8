"""The experts' products over rows sorted by expert: torch's `grouped_mm`, or the persistent kernel where it is faster.

Suffixes: n rows sorted by expert, h hidden, f expert width, a inner and b outer dimension, e experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from megatron_ring.model.kernels.swiglu import swiglu_forward
from megatron_ring.parallel.device import is_hopper


def first_product(
    x_nh: torch.Tensor, gate_up_e: torch.Tensor, ends_e: torch.Tensor, weights_n: torch.Tensor, exact: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gates and ups [N, 2f], weight * silu(gate) * up [N, f]); gate_up [E, 2f, hidden], row weights fp32 [N]. One kernel
    makes both on Hopper."""
    if not exact and _persistent(x_nh, gate_up_e):
        from megatron_ring.model.kernels import grouped_triton

        return grouped_triton.product_and_swiglu(x_nh, gate_up_e, ends_e, weights_n)
    gate_up_nf = rows_product(x_nh, gate_up_e, ends_e, transposed=True, exact=exact)
    return gate_up_nf, swiglu_forward(gate_up_nf, weights_n)


def rows_product(
    x_na: torch.Tensor, weight_e: torch.Tensor, ends_e: torch.Tensor, transposed: bool, exact: bool = False
) -> torch.Tensor:
    """Each expert's rows times its matrix: weight [E, b, a] if `transposed`, else [E, a, b] -> [N, b]. `exact`: by --exact's
    kernel, which wants `transposed`."""
    if exact:
        from megatron_ring.model.kernels.exact_mm_triton import exact_grouped_mm

        return exact_grouped_mm(x_na, weight_e, ends_e)
    if not transposed and _persistent(x_na, weight_e):  # of `transposed` ones torch's is as fast (tools/bench_grouped.py)
        from megatron_ring.model.kernels import grouped_triton

        return grouped_triton.product(x_na, weight_e, ends_e, transposed)
    return F.grouped_mm(x_na, weight_e.transpose(1, 2) if transposed else weight_e, offs=ends_e)


def weight_gradient(dy_nb: torch.Tensor, x_na: torch.Tensor, ends_e: torch.Tensor) -> torch.Tensor:
    """dy^T x of each expert's rows, [E, b, a]; 0 for an expert without any."""
    return F.grouped_mm(dy_nb.t(), x_na, offs=ends_e)


def _persistent(x_na: torch.Tensor, weight_e: torch.Tensor) -> bool:
    """Tiles have 128 rows: with fewer for each expert, as in decoding, they would be empty for the most part."""
    if x_na.dtype is not torch.bfloat16 or not is_hopper(x_na.device):
        return False
    return x_na.shape[0] >= 128 * weight_e.shape[0] and all(size % 64 == 0 for size in weight_e.shape[1:])
