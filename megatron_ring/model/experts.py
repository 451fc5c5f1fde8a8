"""Routed experts: their parameters, and one grouped product per projection over all local ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes

from megatron_ring.config.declarations import moe_weights
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.model.kernels.experts import local_experts, sorted_experts
from megatron_ring.model.kernels.fp8 import Fp8Matrix, Weight, widened
from megatron_ring.model.kernels.rows import combine_rows, sort_by_expert
from megatron_ring.model.norm import RMSNorm
from megatron_ring.parallel.device import current_device

Plus = Callable[[], tuple[torch.Tensor, ...]]  # asked for when they are added: they may still be on their way


class GroupedExperts(torch.nn.Module):
    """SwiGLU experts of this expert-parallel rank.

    Parameters (E_local experts, f = expert width on this expert-tensor-parallel rank):
        gate_up: [E_local, 2, f, hidden] (0: gate, 1: up), down: [E_local, hidden, f].
    """

    gate_up: torch.nn.Parameter
    down: torch.nn.Parameter
    exchanges = True  # whether `expert_exchange` may compute with the parameters

    def __init__(self, num_local_experts: int, config: Any, pg_collection: Any) -> None:
        super().__init__()
        self.num_local_experts = num_local_experts
        self.recompute = config.ring_recompute == "experts"
        self.exact = config.ring_exact
        self.ranks = {
            "expert": pg_collection.ep.rank(),
            "expert_tensor": pg_collection.expt_tp.rank(),
        }
        self.replica = pg_collection.expt_dp.rank()
        self.parallel: ParallelConfig = config.ring_parallel
        declared = moe_weights(config.ring_model)
        self.declared = {name: declared[f"experts.{name}"] for name in ("gate_up", "down")}
        for name, weight in self.declared.items():
            local = torch.empty(weight.local_shape(self.parallel), dtype=config.params_dtype, device=current_device())
            parameter = torch.nn.Parameter(local)
            self.register_parameter(name, parameter)
            # Not a copy of what other tensor-parallel ranks hold: each counts in the gradient norm.
            axis = weight.axis_of("expert_tensor")
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=axis, stride=1)
            # megatron-core reduces such gradients over expert-data-parallel ranks, with an optimizer of their own: also
            # where those are the data-parallel ranks, so that checkpoints have one structure under every layout.
            setattr(parameter, "allreduce", False)  # noqa: B010

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """gate_up [E_local, 2f, hidden] and down [E_local, hidden, f]."""
        return self.gate_up.flatten(1, 2), self.down

    def forward(
        self, x_nh: torch.Tensor, counts_e: torch.Tensor, weights_n: torch.Tensor,
        others: tuple[Weight, Weight] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """weight * expert(x): x [N, hidden] sorted by local expert, counts int [E_local] rows of each, weights [N] ->
        [N, hidden]. `others`: in the place of `matrices`, where there are no gradients."""
        if x_nh.shape[0] == 0:
            # A rank may get no token. Everything stays in the graph: its backward takes part in the same exchanges.
            nothing = self.gate_up.sum() + self.down.sum() + weights_n.sum()
            return x_nh + (0.0 * nothing).to(x_nh.dtype)
        ends_e = counts_e.to(device=x_nh.device).cumsum(0).to(torch.int32)
        gate_up_e, down_e = (widened(weight, x_nh.dtype) for weight in others or self.matrices())
        return sorted_experts(x_nh, weights_n, ends_e, gate_up_e, down_e, self.recompute, self.exact)

    def route_locally(
        self, x_th: torch.Tensor, weights_tk: torch.Tensor, experts_tk: torch.Tensor, plus: Plus,
        others: tuple[Weight, Weight] | None = None, idle_t: torch.Tensor | None = None, norm: RMSNorm | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """Where all experts are here: sum over each token's k of weight * expert(x), plus the tensors of `plus`; x and they
        [T, hidden], weights fp32 [T, k], experts int64 [T, k] -> [T, hidden]. Behind it its `norm`, where one kernel makes
        both. `others`: as in `forward`. `idle_t`: bool [T], tokens whose experts need not be computed."""
        gate_up_e, down_e = others or self.matrices()
        if x_th.is_cuda and not torch.is_grad_enabled() and not self.exact:
            from megatron_ring.model.kernels import few_tokens_triton, rows_triton

            narrow = isinstance(down_e, Fp8Matrix)
            most = few_tokens_triton.MOST_FP8_TOKENS if narrow else few_tokens_triton.MOST_TOKENS
            if 0 < x_th.shape[0] <= most:
                y_nh, back_tk = few_tokens_triton.sorted_outputs(
                    x_th, weights_tk, experts_tk, gate_up_e, down_e, idle_t=idle_t
                )
                if norm is None:
                    return combine_rows(y_nh, back_tk, *plus()), None
                return rows_triton.combine_and_norm(y_nh, back_tk, plus(), norm.weight, norm.eps)
        places = sort_by_expert(experts_tk, down_e.shape[0])
        gate_up_e, down_e = widened(gate_up_e, x_th.dtype), widened(down_e, x_th.dtype)
        out = local_experts(x_th, weights_tk, places, gate_up_e, down_e, plus(), self.recompute, self.exact)
        return out, None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, ShardedTensor]:
        """Shards for megatron-core checkpoints: experts split over EP, their width over ETP."""
        shift = len(sharded_offsets)
        shards = {}
        for name, weight in self.declared.items():
            key = f"{prefix}{name}"
            shards[key] = ShardedTensor.from_rank_offsets(
                key,
                getattr(self, name),
                *sharded_offsets,
                *((shift + axis, self.ranks[ranks], getattr(self.parallel, ranks)) for axis, ranks in weight.splits),
                replica_id=(0, 0, self.replica),
                prepend_axis_num=shift,
            )
        return shards
