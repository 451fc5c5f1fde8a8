"""The MoE layer: router, routed experts, shared experts. Tokens stay where they are when all experts are local."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

from megatron_ring.model.expert_exchange import exchanged_experts, gathered_experts
from megatron_ring.model.kernels.fp8 import Weight
from megatron_ring.model.kernels.swiglu import swiglu
from megatron_ring.model.layer_parts import LayerParts
from megatron_ring.model.layout import TokenLayout
from megatron_ring.model.linear import linear, linear_and_pass
from megatron_ring.model.norm import RMSNorm
from megatron_ring.model.router import RingRouter, RouterLosses
from megatron_ring.model.routes import Routes
from megatron_ring.parallel.graphs import Pending


class SwiGLU(MLP):
    """megatron-core's tensor-parallel MLP with SwiGLU, of any width; gates and ups are one product."""

    def __init__(self, config: Any, width: int, pg_collection: Any = None, **_: Any) -> None:
        parts: LayerParts = config.ring_parts
        submodules = MLPSubmodules(linear_fc1=parts.column_linear, linear_fc2=parts.row_linear)
        config = copy(config)
        config.ffn_hidden_size = width
        super().__init__(config, submodules, tp_group=pg_collection.tp)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[T_local, 1, hidden] -> the same shape."""
        return linear(self.linear_fc2, swiglu(linear(self.linear_fc1, hidden_states)))

    def and_pass(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(forward's result, hidden_states): see `linear_and_pass`."""
        gate_up, passed = linear_and_pass(self.linear_fc1, hidden_states)
        return linear(self.linear_fc2, swiglu(gate_up)), passed


class DenseMLP(SwiGLU):
    """The MLP of a layer without experts."""

    def __init__(self, config: Any, pg_collection: Any = None, **_: Any) -> None:
        pg_collection = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
        super().__init__(config, config.ffn_hidden_size, pg_collection)

    def with_residual(self, hidden_states: torch.Tensor, residual: torch.Tensor, *_: Any) -> torch.Tensor:
        """residual + mlp(hidden_states), both [T_local, 1, hidden]."""
        return residual + self(hidden_states)


class RingMoE(MegatronModule):
    """out = shared(x) + sum over the token's k experts of weight * expert(x).

    Experts of several ranks get their rows through `expert_exchange`; where they are split themselves (expert-tensor
    parallelism), or are Transformer Engine's, through megatron-core's all-to-all dispatcher.
    """

    def __init__(self, config: Any, pg_collection: Any = None, **_: Any) -> None:
        super().__init__(config)
        pg_collection = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
        losses: RouterLosses = config.ring_router_losses
        ep_size = config.expert_model_parallel_size
        local = config.num_moe_experts // ep_size
        self.router = RingRouter(config, losses)
        self.tensor_group = pg_collection.tp
        self.experts = config.ring_parts.experts(local, config, pg_collection)
        self.shared_experts = None
        if config.moe_shared_expert_intermediate_size:
            self.shared_experts = SwiGLU(config, config.moe_shared_expert_intermediate_size, pg_collection)
        self.dispatcher: Any = None
        self.exchanges = ep_size > 1 and config.expert_tensor_parallel_size == 1 and self.experts.exchanges
        if ep_size * config.expert_tensor_parallel_size > 1 and not self.exchanges:
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
        return self._run(hidden_states, padding_mask), None

    def with_residual(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, padding_mask: torch.Tensor | None = None,
        layout: TokenLayout | None = None, following: tuple[RMSNorm, ...] = (),
    ) -> torch.Tensor:  # fmt: skip
        """residual + moe(hidden_states), both [T_local, 1, hidden]. Where the same kernel can make the `following` norm of
        it, that is left in `layout.ahead`."""
        return self._run(hidden_states, padding_mask, residual, layout, following)

    def _run(
        self, hidden_states: torch.Tensor, padding_mask: torch.Tensor | None, residual: torch.Tensor | None = None,
        layout: TokenLayout | None = None, following: tuple[RMSNorm, ...] = (),
    ) -> torch.Tensor:  # fmt: skip
        hidden_th = hidden_states.view(-1, hidden_states.shape[-1])
        padding_t = None if padding_mask is None else padding_mask.reshape(-1)
        routes = None if layout is None else layout.routes
        narrow = None if layout is None or layout.narrow is None else layout.narrow.of(self)
        idle_t = None if layout is None or layout.idle is None else self._of_tokens_here(layout.idle)
        shared, few = self._shared_experts(hidden_states, layout)
        begun = None if layout is None else self._begin_beside(hidden_states, layout, shared)
        weights_tk, experts_tk, _, hidden_th = self.router(hidden_th, padding_t, self._given(routes))
        if routes is not None:
            routes.note(self.router.layer_number, experts_tk)
        if self.exchanges:
            residual_th = None if residual is None else residual.view_as(hidden_th)
            exact = self.config.ring_exact
            gate_up_e, down_e = narrow or self.experts.matrices()
            given = (residual_th, gate_up_e, down_e, shared if begun is None else lambda _: begun.result())
            alike = layout is not None and layout.alike and not exact  # `gathered_experts` adds up in another order
            if alike:
                experts_tk = experts_tk if idle_t is None else experts_tk.masked_fill(idle_t[:, None], -1)
                out = gathered_experts(hidden_th, weights_tk, experts_tk, *given)
            else:
                out = exchanged_experts(hidden_th, weights_tk, experts_tk, *given, self.experts.recompute, exact)
            return out.view_as(hidden_states)
        plus = () if residual is None else (residual,)
        if few and begun is None:
            plus = (*plus, shared(hidden_states))
        elif self.shared_experts is not None and begun is None:
            mlp_out, passed = self.shared_experts.and_pass(hidden_th.view_as(hidden_states))
            plus, hidden_th = (*plus, mlp_out), passed.view_as(hidden_th)

        def others() -> tuple[torch.Tensor, ...]:
            ready = plus if begun is None else (*plus, begun.result())
            return tuple(other.view_as(hidden_th) for other in ready)

        if self.dispatcher is None:
            norm = following[0] if following and layout is not None else None
            out, normed = self.experts.route_locally(hidden_th, weights_tk, experts_tk, others, narrow, idle_t, norm)
            if layout is not None and normed is not None:
                layout.ahead = (out, normed)
        else:
            out = self._route_over_ranks(hidden_th, weights_tk, experts_tk, narrow)
            for other in others():
                out = out + other
        return out.view_as(hidden_states)

    def _shared_experts(self, hidden_states: torch.Tensor, layout: TokenLayout | None) -> tuple[Any, bool]:
        """What computes the shared experts' result, or None; and whether that are the kernels of the routed ones, as they
        are for the few tokens of a decoding step."""
        shared = self.shared_experts
        if shared is None or layout is None or not layout.alike or not hidden_states.is_cuda or self.config.ring_exact:
            return shared, False
        first, second = shared.linear_fc1, shared.linear_fc2
        plain = type(first) is ColumnParallelLinear and first.bias is None and self.tensor_group.size() == 1
        if torch.is_grad_enabled() or not plain or hidden_states.itemsize != 2:
            return shared, False
        from megatron_ring.model.kernels import few_tokens_triton

        hidden_th = hidden_states.view(-1, hidden_states.shape[-1])
        if hidden_th.shape[0] > few_tokens_triton.MOST_SHARED:
            return shared, False
        return lambda _: few_tokens_triton.one_expert(hidden_th, first.weight, second.weight), True

    def _begin_beside(self, hidden_states: torch.Tensor, layout: TokenLayout, shared: Any) -> Pending | None:
        """The shared experts' result, on its way beside all that comes before it is added; None where they run in turn. So
        they do with tensor parallelism: collectives of a group keep one order on all ranks only on one stream. And so do
        Transformer Engine's products, which have not been tried on two streams."""
        if layout.side is None or self.shared_experts is None or torch.is_grad_enabled():
            return None
        if self.tensor_group.size() > 1 or type(self.shared_experts.linear_fc1) is not ColumnParallelLinear:
            return None
        return layout.side.beside(lambda: shared(hidden_states))

    def _given(self, routes: Routes | None) -> tuple[torch.Tensor, ...] | None:
        """What is known of the experts of the tokens here."""
        given = None if routes is None else routes.given(self.router.layer_number)
        return None if given is None else tuple(map(self._of_tokens_here, given))

    def _of_tokens_here(self, all_t: torch.Tensor) -> torch.Tensor:
        """With sequence parallelism a part of all."""
        if not self.config.sequence_parallel:
            return all_t
        return all_t.chunk(self.tensor_group.size())[self.tensor_group.rank()]

    def _route_over_ranks(
        self, hidden_th: torch.Tensor, weights_tk: torch.Tensor, experts_tk: torch.Tensor,
        narrow: tuple[Weight, Weight] | None,
    ) -> torch.Tensor:  # fmt: skip
        """Experts live on several ranks: megatron-core's dispatcher exchanges tokens and brings results back."""
        dense = torch.zeros(hidden_th.shape[0], self.config.num_moe_experts, device=hidden_th.device)
        routed_te = torch.zeros_like(dense, dtype=torch.bool).scatter_(1, experts_tk, True)
        weights_te = dense.to(weights_tk.dtype).scatter(1, experts_tk, weights_tk)
        dispatcher = self.dispatcher
        x, probs = dispatcher.dispatch_preprocess(hidden_th, routed_te, weights_te)
        x, probs = dispatcher.token_dispatch(x, probs)
        x, counts_e, probs = dispatcher.dispatch_postprocess(x, probs)
        out = dispatcher.combine_preprocess(self.experts(x, counts_e, probs, narrow))
        out = dispatcher.combine_postprocess(dispatcher.token_combine(out))
        dispatcher.probs = None  # its graph would hold this model, in a cycle that Python cannot see
        return out
