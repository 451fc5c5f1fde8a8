"""Builds this process's part of a Ring model on megatron-core's GPTModel, and runs it on packed tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_ring.config.declarations import Weight, stage_weights
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.model.attention import RingAttention
from megatron_ring.model.head import VocabularyHead
from megatron_ring.model.layer import Recompute, RingLayer
from megatron_ring.model.layer_parts import LayerImpl, LayerParts, layer_parts
from megatron_ring.model.layout import TokenLayout
from megatron_ring.model.moe import DenseMLP, RingMoE
from megatron_ring.model.norm import RMSNorm
from megatron_ring.model.router import RouterLosses, balance_bias
from megatron_ring.model.routes import moe_layers
from megatron_ring.model.score_head import ScoreHead
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext


def _pipeline_layout(model: ModelConfig, parallel: ParallelConfig) -> list[list[str]] | None:
    """megatron-core's description of who holds which layer; it needs one where they do not divide evenly."""
    if model.num_layers % parallel.pipeline == 0:
        return None
    stages = [["decoder"] * len(parallel.stage_layers(model.num_layers, stage)) for stage in range(parallel.pipeline)]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages


def transformer_config(
    model: ModelConfig,
    context: ParallelContext,
    losses: RouterLosses,
    dtype: torch.dtype,
    recompute: Recompute = "none",
    layer_impl: LayerImpl = "native",
    exact: bool = False,
) -> TransformerConfig:
    """megatron-core's configuration of `model` under the layout of `context`.

    Raises:
        UserError: the layers' implementation is not there.
    """
    parts = layer_parts(layer_impl, dtype)
    parallel = context.config
    config = TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.head_dim,
        ffn_hidden_size=model.dense_width,
        num_moe_experts=model.num_experts,
        moe_ffn_hidden_size=model.expert_width,
        moe_shared_expert_intermediate_size=model.shared_width or None,
        moe_router_topk=model.experts_per_token,
        moe_token_dispatcher_type="alltoall",
        moe_router_pre_softmax=True,  # the router is ours; megatron-core insists where only one expert is chosen
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
        pipeline_model_parallel_layout=_pipeline_layout(model, parallel),
        sequence_parallel=parallel.sequence_parallel,
        calculate_per_token_loss=True,
        perform_initialization=False,
        moe_permute_fusion=layer_impl == "te",
    )
    config.ring_parts = parts
    config.ring_model, config.ring_parallel = model, parallel
    config.ring_router_losses = losses
    config.ring_recompute = recompute
    config.ring_exact = exact
    return config


def _layer_spec(moe: bool, parts: LayerParts) -> ModuleSpec:
    return ModuleSpec(
        module=RingLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=parts.norm,
            self_attention=RingAttention,
            pre_mlp_layernorm=parts.norm,
            mlp=RingMoE if moe else DenseMLP,
        ),
    )


def _mark_split_weights(model: torch.nn.Module, declared: dict[str, Weight]) -> None:
    """Tell megatron-core which weights are split over TP ranks. It marks them only when it initialises them itself (0.16),
    and a weight without the mark counts on the first rank alone in the gradient norm."""
    for name, parameter in model.named_parameters():
        axis = declared[name].axis_of("tensor")
        if axis is not None and not hasattr(parameter, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=axis, stride=1)


class RingModel(GPTModel):
    """This pipeline stage's layers. `router_losses` is shared by its routers; weights start uninitialised: see
    `checkpoint.initialize` (random, the same under every layout) and `checkpoint.load`.

    The last stage has an `output_layer`, or as a reward model a `score` in its place."""

    output_layer: VocabularyHead
    score: ScoreHead

    def __init__(
        self,
        model: ModelConfig,
        context: ParallelContext,
        router: RouterLossConfig,
        dtype: torch.dtype,
        recompute: Recompute = "none",
        layer_impl: LayerImpl = "native",
        exact: bool = False,
    ) -> None:
        self_losses = RouterLosses(router, counts_loads=router.bias_rate > 0)
        config = transformer_config(model, context, self_losses, dtype, recompute, layer_impl, exact)
        layers = context.config.stage_layers(model.num_layers, context.pipeline_rank)
        parts: LayerParts = config.ring_parts
        specs = [_layer_spec(model.is_moe_layer(layer), parts) for layer in layers]
        super().__init__(
            config=config,
            transformer_layer_spec=TransformerBlockSubmodules(layer_specs=specs, layer_norm=parts.norm),
            vocab_size=context.config.padded_vocabulary(model.vocab_size),
            max_sequence_length=model.max_positions,
            pre_process=context.first_stage,
            post_process=context.last_stage,
            parallel_output=True,
            share_embeddings_and_output_weights=False,
            position_embedding_type="none",
        )
        if context.last_stage and model.head == "score":
            del self.output_layer
            self.score = ScoreHead(config, context)
        elif context.last_stage:
            self.output_layer = self._head(model, context)
        _mark_split_weights(self, stage_weights(model, context.config, context.pipeline_rank))
        self.ring_config = model
        self.router_losses = self_losses
        self.tensor_rank, self.tensor_size = context.tensor_rank, context.config.tensor
        self.local_layers = layers
        self.route_layers = moe_layers(model, layers)
        self.first_stage, self.last_stage = context.first_stage, context.last_stage
        for layer, following in pairwise(self.decoder.layers):
            if type(following.input_layernorm) is RMSNorm:
                layer.following = (following.input_layernorm,)

    def _head(self, model: ModelConfig, context: ParallelContext) -> VocabularyHead:
        padded = context.config.padded_vocabulary(model.vocab_size)
        settings = {"config": self.config, "init_method": self.config.init_method, "bias": False, "gather_output": False}
        head = VocabularyHead(model.hidden_size, padded, **settings)
        here = padded // context.config.tensor
        head.tensor_rank = context.tensor_rank
        head.real_columns = min(here, max(0, model.vocab_size - here * context.tensor_rank))
        return head

    def balance_biases(self, loads: torch.Tensor) -> None:
        """Move the biases of this stage's experts by `loads`, fp64 [MoE layers of the model, E]: the tokens that each
        expert got in a step, over all ranks."""
        rate = self.router_losses.config.bias_rate
        for layer in self.decoder.layers:
            router = getattr(layer.mlp, "router", None)
            if rate > 0 and router is not None and router.expert_bias is not None:
                place = router.layer_number - 1 - self.ring_config.first_dense_layers
                balance_bias(router.expert_bias, loads[place], rate)

    def _postprocess(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """megatron-core would make all logits here; ours are made by the head when it is known what for."""
        return hidden_states

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> Any:
        """megatron-core's description of this process's weights, every layer under a key with its global number: layers
        may differ (dense ones first), and each is found without knowing the others. Without the empty "extra states" that
        megatron-core's linear layers have for Transformer Engine's sake."""
        metadata = {**(metadata or {}), "non_homogeneous_layers": True}
        if self.ring_config.head == "score":  # GPTModel and LanguageModule look for an output layer
            described = super(LanguageModule, self).sharded_state_dict(prefix, sharded_offsets, metadata)
        else:
            described = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        return {name: item for name, item in described.items() if not name.endswith("_extra_state")}


def build_model(
    model: ModelConfig,
    context: ParallelContext,
    router: RouterLossConfig | None = None,
    dtype: torch.dtype = torch.float32,
    recompute: Recompute = "none",
    layer_impl: LayerImpl = "native",
    exact: bool = False,
) -> RingModel:
    """This process's part of the model, on its device, in `dtype` (fp32 or bf16), weights not yet set. `exact`: its forward
    pass gives a token the same bits whatever its batch (`exact.check_exact` tells where that holds).

    Raises:
        UserError: the layers' implementation is not there.
    """
    ring = RingModel(model, context, router or RouterLossConfig(0.0, 0.0), dtype, recompute, layer_impl, exact)
    return ring.to(context.device)


def forward_packed(
    model: torch.nn.Module, tokens: torch.Tensor, layout: TokenLayout, padding: torch.Tensor | None = None
) -> torch.Tensor:
    """Run one pipeline stage on T packed tokens.

    Args:
        model: a RingModel, bare or wrapped for data parallelism.
        tokens: int64 [T]; T is a multiple of TP.
        layout: positions and attention of the tokens.
        padding: bool [T], True where a token is padding and must not count in router losses.

    Returns:
        Hidden states [T or T/TP, 1, hidden]; on the last stage after the final norm, for the model's head.
    """
    ring: Any = model.module if hasattr(model, "module") else model
    mask = None
    if padding is not None:
        mask = padding[None, :]
        if not ring.pre_process and ring.tensor_size > 1:  # GPTModel scatters it on the first stage only
            mask = mask.chunk(ring.tensor_size, dim=1)[ring.tensor_rank]
    output: torch.Tensor = model(
        input_ids=tokens[None, :], position_ids=None, attention_mask=None, packed_seq_params=layout, padding_mask=mask
    )
    return output


@torch.no_grad()
def forward_all_stages(
    model: RingModel, tokens: torch.Tensor, layout: TokenLayout, rows: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Run T packed tokens through all pipeline stages, without gradients; all stages call it together.

    Returns:
        On the last stage vocab-parallel logits [R, vocab/TP] of the tokens `rows` (int64 [R]; None: all T), None on the
        others.
    """
    output = hidden_of_last_stage(model, tokens, layout)
    return None if output is None else model.output_layer.logits(output, rows)


@torch.no_grad()
def hidden_of_last_stage(model: RingModel, tokens: torch.Tensor, layout: TokenLayout) -> torch.Tensor | None:
    """`forward_all_stages` up to the head: on the last stage hidden states [T or T/TP, 1, hidden] for it."""
    if not model.first_stage:
        shape = (tokens.numel() // model.tensor_size, 1, model.ring_config.hidden_size)
        dtype = next(model.parameters()).dtype
        model.set_input_tensor(collectives.receive_from_previous_stage(shape, dtype, tokens.device))
    output = forward_packed(model, tokens, layout)
    if model.last_stage:
        return output
    collectives.send_to_next_stage(output)
    return None
