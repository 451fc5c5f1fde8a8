"""What bench_train.py compares with: megatron-core as it comes, megatron-core on Transformer Engine, transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from megatron_ring.config.model import ModelConfig
from megatron_ring.errors import UserError
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext

if TYPE_CHECKING:  # see bench_train_measure
    from tools.bench_train_ring import LEARNING_RATE
    from tools.bench_train_work import Clock, PackedTokens, PlainStep, fill_with_noise
else:
    from bench_train_ring import LEARNING_RATE
    from bench_train_work import Clock, PackedTokens, PlainStep, fill_with_noise


def mcore_config(shape: ModelConfig, context: ParallelContext, dtype: torch.dtype, engine: bool, recompute: str) -> Any:
    """megatron-core's configuration of `shape`; with Transformer Engine, everything that makes it faster switched on."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    parallel = context.config
    fast = {
        "moe_grouped_gemm": True, "moe_permute_fusion": True, "moe_router_fusion": True, "apply_rope_fusion": True,
        "bias_activation_fusion": True, "bias_dropout_fusion": True, "masked_softmax_fusion": True,
        "persist_layer_norm": True, "cross_entropy_loss_fusion": True, "cross_entropy_fusion_impl": "te",
    }  # fmt: skip
    plain = {"bias_activation_fusion": False, "bias_dropout_fusion": False, "transformer_impl": "local"}
    recomputing: dict[str, dict[str, Any]] = {
        "none": {},
        "experts": {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
        "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    }
    return TransformerConfig(
        num_layers=shape.num_layers, hidden_size=shape.hidden_size, num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_key_value_heads, kv_channels=shape.head_dim, ffn_hidden_size=shape.dense_width,
        num_moe_experts=shape.num_experts, moe_ffn_hidden_size=shape.expert_width, moe_router_topk=shape.experts_per_token,
        moe_shared_expert_intermediate_size=shape.shared_width or None, moe_token_dispatcher_type="alltoall",
        moe_router_load_balancing_type="none", moe_router_dtype="fp32",
        normalization="RMSNorm", layernorm_epsilon=shape.norm_eps, add_bias_linear=False, add_qkv_bias=shape.qkv_bias,
        gated_linear_unit=True, activation_func=F.silu, hidden_dropout=0.0, attention_dropout=0.0,
        gradient_accumulation_fusion=False,  # wants Apex for the output projection
        params_dtype=dtype, pipeline_dtype=dtype, bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=parallel.tensor, pipeline_model_parallel_size=parallel.pipeline,
        expert_model_parallel_size=parallel.expert, expert_tensor_parallel_size=parallel.expert_tensor,
        sequence_parallel=parallel.sequence_parallel, calculate_per_token_loss=True, perform_initialization=False,
        **(fast if engine else plain), **recomputing[recompute],
    )  # fmt: skip


def mcore_model(shape: ModelConfig, context: ParallelContext, config: Any, engine: bool) -> torch.nn.Module:
    """GPTModel of megatron-core's own layer specification, with random weights."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt import gpt_layer_specs as specs
    from megatron.core.transformer.module import Float16Module
    from megatron.core.transformer.moe import moe_utils

    if shape.first_dense_layers:
        raise UserError("megatron-core's layer specifications here have experts in every layer")
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # 0.16 forgets to say so where Transformer Engine is absent
    if engine:
        spec = specs.get_gpt_layer_with_transformer_engine_spec(num_experts=shape.num_experts, moe_grouped_gemm=True)
    else:
        spec = specs.get_gpt_layer_local_spec(num_experts=shape.num_experts, normalization="RMSNorm")
    model = GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=context.config.padded_vocabulary(shape.vocab_size),
        max_sequence_length=shape.max_positions,
        pre_process=context.first_stage,
        post_process=context.last_stage,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=round(shape.rope_theta),
    ).to(context.device)
    if config.bf16:
        model = Float16Module(config, model)
    fill_with_noise(model, shape.init_std)
    return model


class McoreInputs:
    """A (micro-)batch as GPTModel takes it: packed for Transformer Engine where lengths differ, else padded."""

    def __init__(self, tokens_sl: torch.Tensor, targets_sl: torch.Tensor, packed: PackedTokens | None = None) -> None:
        self.counted = targets_sl >= 0
        self.count = int(self.counted.sum())
        positions = torch.arange(tokens_sl.shape[1], device=tokens_sl.device).expand(tokens_sl.shape)
        self.arguments: dict[str, Any] = {
            "input_ids": tokens_sl, "position_ids": positions, "attention_mask": None, "labels": targets_sl.clamp(min=0),
        }  # fmt: skip
        if packed is not None:
            from megatron.core.packed_seq_params import PackedSeqParams

            bounds, longest = packed.bounds, max(packed.lengths)
            self.arguments["position_ids"] = packed.positions[None]
            self.arguments["packed_seq_params"] = PackedSeqParams(
                qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest
            )

    def loss_sum(self, losses_sl: torch.Tensor) -> torch.Tensor:
        """Of the model's losses of each token."""
        return (losses_sl.float() * self.counted).sum()


def mcore_inputs(batches: Sequence[PackedTokens], engine: bool) -> list[McoreInputs]:
    """All micro-batches; several of padded ones for one packed one."""
    inputs = []
    for batch in batches:
        if engine and len(set(batch.lengths)) > 1:
            inputs.append(McoreInputs(batch.tokens[None], batch.targets[None], batch))
        else:
            inputs += [McoreInputs(tokens, targets) for tokens, targets in batch.padded()]
    return inputs


class ScheduledMcore:
    """megatron-core's own training step: gradient buffers, schedule, finalisation, clipping, distributed optimizer."""

    def __init__(self, model: torch.nn.Module, config: Any, inputs: Sequence[McoreInputs]) -> None:
        from megatron.core import distributed, optimizer
        from megatron.core.pipeline_parallel import get_forward_backward_func

        buffers = distributed.DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
        self.ddp = distributed.DistributedDataParallel(config=config, ddp_config=buffers, module=model)
        settings = optimizer.OptimizerConfig(
            optimizer="adam", lr=LEARNING_RATE, weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.95, clip_grad=1.0,
            bf16=config.bf16, params_dtype=config.params_dtype, use_distributed_optimizer=True,
        )  # fmt: skip
        self.optimizer = optimizer.get_megatron_optimizer(settings, [self.ddp])
        config.finalize_model_grads_func = distributed.finalize_model_grads
        config.no_sync_func = self.ddp.no_sync
        self.run_schedule = get_forward_backward_func()
        self.inputs = inputs

    def step(self, clock: Clock) -> float:
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        losses: list[torch.Tensor] = []

        def forward_step(iterator: Iterator[McoreInputs], model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
            clock.end("backward" if clock.last == "forward" else "rest")
            inputs = next(iterator)

            def reduce(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
                loss = inputs.loss_sum(output)
                losses.append(loss.detach())
                clock.end("forward")
                return loss, torch.tensor(inputs.count, dtype=torch.int, device=loss.device), {}

            output = model(**inputs.arguments)
            clock.end("forward")
            return output, reduce

        rows, length = self.inputs[0].counted.shape
        self.run_schedule(
            forward_step_func=forward_step, data_iterator=iter(self.inputs), model=[self.ddp],
            num_microbatches=len(self.inputs), seq_length=length, micro_batch_size=rows, forward_only=False,
        )  # fmt: skip
        clock.end("backward")
        self.optimizer.step()
        clock.end("optimizer")
        total = collectives.broadcast_object_from_last_stage(sum(float(loss) for loss in losses))
        return total / sum(inputs.count for inputs in self.inputs)


def build_mcore(
    engine: bool,
    shape: ModelConfig,
    context: ParallelContext,
    dtype: torch.dtype,
    batches: Sequence[PackedTokens],
    optimizer: bool,
    recompute: str,
) -> PlainStep | ScheduledMcore:
    """megatron-core, as it comes (local specification: experts one by one, unfused attention) or on Transformer Engine."""
    config = mcore_config(shape, context, dtype, engine, recompute)
    model = mcore_model(shape, context, config, engine)
    inputs = mcore_inputs(batches, engine)
    if optimizer:
        return ScheduledMcore(model, config, inputs)
    total = sum(each.count for each in inputs)
    return PlainStep(model, [partial(_mcore_loss, model, each, total) for each in inputs])


def _mcore_loss(model: torch.nn.Module, inputs: McoreInputs, total: int) -> torch.Tensor:
    return inputs.loss_sum(model(**inputs.arguments)) / total


def transformers_model(shape: ModelConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' Ernie 4.5 MoE, which has the same parts, with random weights: grouped products for experts, SDPA."""
    import transformers

    config = transformers.Ernie4_5_MoeConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.dense_width,
        num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads, max_position_embeddings=shape.max_positions,
        rms_norm_eps=shape.norm_eps, initializer_range=shape.init_std, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta}, moe_k=shape.experts_per_token,
        moe_intermediate_size=shape.expert_width, moe_num_experts=shape.num_experts,
        moe_num_shared_experts=shape.num_shared_experts, moe_layer_start_index=shape.first_dense_layers,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with device:
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa", experts_implementation="grouped_mm"
        )
    fill_with_noise(model, shape.init_std)
    return model


def build_transformers(
    shape: ModelConfig,
    context: ParallelContext,
    dtype: torch.dtype,
    batches: Sequence[PackedTokens],
    optimizer: bool,
    recompute: str,
) -> PlainStep:
    """`transformers_model` with cuDNN first for attention and torch's fused AdamW on the weights as they are."""
    if context.world_size > 1 or recompute == "experts":
        raise UserError("transformers: one process here, and --recompute none or full")
    model = transformers_model(shape, context.device, dtype)
    model.train()
    if recompute == "full":
        model.gradient_checkpointing_enable()
    adam = None
    if optimizer:
        adam = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    parts = [part for batch in batches for part in batch.padded()]
    total = sum(int((targets >= 0).sum()) for _, targets in parts)
    shares = [int((targets >= 0).sum()) / total for _, targets in parts]
    losses = [partial(_transformers_loss, model, *part, share) for part, share in zip(parts, shares, strict=True)]
    return PlainStep(model, losses, adam)


def _transformers_loss(model: torch.nn.Module, tokens: torch.Tensor, targets: torch.Tensor, share: float) -> torch.Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(kernels, set_priority=True):
        loss: torch.Tensor = model(input_ids=tokens, labels=targets, shift_labels=targets, use_cache=False).loss
    return loss * share
