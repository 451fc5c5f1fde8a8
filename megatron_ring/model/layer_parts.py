"""What layers are built of: this project's modules (native), or Transformer Engine's with the same parameters (te).

Names and shapes of parameters are the same, so that checkpoints, tensor rules and the optimizer know no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from megatron_ring.errors import UserError
from megatron_ring.model.experts import GroupedExperts
from megatron_ring.model.layout import TokenLayout
from megatron_ring.model.norm import RMSNorm
from megatron_ring.parallel.device import has_cuda

LayerImpl = Literal["native", "te"]
# (layout, 1-based layer, qkv [T, KV heads, queries of one + 2, d], (cos, sin)) -> [T, heads, d]
Attend = Callable[[TokenLayout, int, torch.Tensor, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class LayerParts:
    """Classes of one implementation, or functions that are called as they are.

    norm: as RMSNorm. column_linear, row_linear: as megatron-core's. experts: as GroupedExperts. attention: (configuration)
    -> Attend.
    """

    norm: Callable[..., Any]
    column_linear: Callable[..., Any]
    row_linear: Callable[..., Any]
    experts: Callable[..., Any]
    attention: Callable[[Any], Attend]


def _attend_as_the_layout_does(config: Any) -> Attend:
    exact = config.ring_exact
    return lambda layout, layer, qkv_tgpd, rope: layout.attend_unsplit(layer, qkv_tgpd, rope, exact)


def layer_parts(implementation: LayerImpl, dtype: torch.dtype) -> LayerParts:
    """The parts of an implementation, for parameters of `dtype`.

    Raises:
        UserError: Transformer Engine is asked for and is not there, or cannot run here.
    """
    if implementation == "native":
        return LayerParts(RMSNorm, ColumnParallelLinear, RowParallelLinear, GroupedExperts, _attend_as_the_layout_does)
    if not has_cuda() or dtype is not torch.bfloat16:
        raise UserError("--layer-impl te: Transformer Engine wants a CUDA device and --precision bf16")
    try:
        import transformer_engine.pytorch  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "transformer_engine":
            raise UserError(f"--layer-impl te: Transformer Engine lacks a package: {error}") from None
        how = "pip install --no-build-isolation 'transformer-engine[pytorch]'"
        raise UserError(f"--layer-impl te: Transformer Engine is not installed: {how}") from None
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"--layer-impl te: Transformer Engine cannot be imported: {error}") from None
    from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

    from megatron_ring.model import te_parts

    return LayerParts(
        te_parts.EngineNorm,
        TEColumnParallelLinear,
        TERowParallelLinear,
        te_parts.EngineExperts,
        te_parts.EngineAttention,
    )
