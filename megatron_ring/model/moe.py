"""The MoE layer: router, routed experts, shared experts. Tokens stay where they are when all experts are local;
otherwise megatron-core's all-to-all dispatcher moves them."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

from megatron_ring.model.experts import GroupedExperts
from megatron_ring.model.router import RingRouter, RouterLosses


class SwiGLU(MLP):
    """megatron-core's tensor-parallel MLP with SwiGLU, of any width."""

    def __init__(self, config: Any, width: int, pg_collection: Any = None, **_: Any) -> None:
        submodules = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        config = copy(config)
        config.ffn_hidden_size = width
        super().__init__(config, submodules, tp_group=pg_collection.tp)


class DenseMLP(SwiGLU):
    """The MLP of a layer without experts. Ignores the padding mask that routers need."""

    def __init__(self, config: Any, pg_collection: Any = None, **_: Any) -> None:
        pg_collection = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
        super().__init__(config, config.ffn_hidden_size, pg_collection)

    def forward(self, hidden_states: torch.Tensor, padding_mask: Any = None, **_: Any) -> tuple[torch.Tensor, None]:
        return super().forward(hidden_states)


class RingMoE(MegatronModule):
    """out = shared(x) + sum over the token's k experts of weight * expert(x)."""

    def __init__(self, config: Any, pg_collection: Any = None, **_: Any) -> None:
        super().__init__(config)
        pg_collection = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
        losses: RouterLosses = config.ring_router_losses
        ep_size = config.expert_model_parallel_size
        local = config.num_moe_experts // ep_size
        self.router = RingRouter(config, losses)
        self.experts = GroupedExperts(local, config, pg_collection)
        self.shared_experts = None
        if config.moe_shared_expert_intermediate_size:
            self.shared_experts = SwiGLU(config, config.moe_shared_expert_intermediate_size, pg_collection)
        self.dispatcher: Any = None
        if ep_size * config.expert_tensor_parallel_size > 1:
            first = pg_collection.ep.rank() * local
            self.dispatcher = MoEAlltoAllTokenDispatcher(
                local, list(range(first, first + local)), config=config, pg_collection=pg_collection
            )

    def set_layer_number(self, layer_number: int) -> None:
        self.router.layer_number = layer_number

    def forward(
        self, hidden_states: torch.Tensor, padding_mask: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """hidden_states [T_local, 1, hidden], padding_mask bool [1, T_local] (True: padding) -> same shape, no bias."""
        hidden_th = hidden_states.view(-1, hidden_states.shape[-1])
        padding_t = None if padding_mask is None else padding_mask.reshape(-1)
        weights_tk, experts_tk, _ = self.router(hidden_th, padding_t)
        route = self._route_locally if self.dispatcher is None else self._route_over_ranks
        out = route(hidden_th, weights_tk, experts_tk).view_as(hidden_states)
        if self.shared_experts is not None:
            out = out + self.shared_experts(hidden_states)[0]
        return out, None

    def _route_locally(self, hidden_th: torch.Tensor, weights_tk: torch.Tensor, experts_tk: torch.Tensor) -> torch.Tensor:
        """All experts are here: sort token-slots by expert, one grouped product, sort back. No host synchronisation."""
        tokens, k = experts_tk.shape
        flat = experts_tk.flatten()
        order = torch.argsort(flat, stable=True)
        counts_e = torch.zeros(self.config.num_moe_experts, dtype=torch.int64, device=flat.device)
        counts_e.scatter_add_(0, flat, torch.ones_like(flat))
        slots = self.experts(hidden_th.index_select(0, order // k), counts_e, weights_tk.flatten().index_select(0, order))
        back = torch.empty_like(order)
        back[order] = torch.arange(order.numel(), device=order.device)
        return slots.index_select(0, back).view(tokens, k, -1).sum(dim=1)

    def _route_over_ranks(self, hidden_th: torch.Tensor, weights_tk: torch.Tensor, experts_tk: torch.Tensor) -> torch.Tensor:
        """Experts live on several ranks: megatron-core's dispatcher exchanges tokens and brings results back."""
        dense = torch.zeros(hidden_th.shape[0], self.config.num_moe_experts, device=hidden_th.device)
        routed_te = torch.zeros_like(dense, dtype=torch.bool).scatter_(1, experts_tk, True)
        weights_te = dense.to(weights_tk.dtype).scatter(1, experts_tk, weights_tk)
        dispatcher = self.dispatcher
        x, probs = dispatcher.dispatch_preprocess(hidden_th, routed_te, weights_te)
        x, probs = dispatcher.token_dispatch(x, probs)
        x, counts_e, probs = dispatcher.dispatch_postprocess(x, probs)
        out = dispatcher.combine_preprocess(self.experts(x, counts_e, probs))
        return dispatcher.combine_postprocess(dispatcher.token_combine(out))
