"""Frozen configurations, one per concern. Each checks itself when built and raises `UserError` with the numbers.

tyro turns every field into a flag; the docstring under a field is its help. This module imports no torch, so that
`--help` answers at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_ring.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


UNLIMITED: dict[str, Any] = {"unlimited": True}
"""Metadata of numbers that may be infinite; all others are refused."""
LEAST_TEMPERATURE = 1e-4


def require_temperature(value: float, flag: str) -> None:
    """Raise `UserError` for what logits cannot be divided by in fp32."""
    in_range = value == 0 or LEAST_TEMPERATURE <= value < math.inf
    require(in_range, f"{flag} is {value}: give at least {LEAST_TEMPERATURE:g}, or 0 for the most likely token")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary embeddings are stretched beyond the positions that the model was first trained on (`rope_scaling`)."""

    kind: Literal["yarn", "linear"]
    factor: float
    original_max_positions: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        require(self.kind in ("yarn", "linear"), f"rope_scaling: type {self.kind!r} is not supported (yarn, linear)")
        require(self.factor > 0, f"rope_scaling: factor is {self.factor}, it must be positive")
        require(self.original_max_positions >= 1, "rope_scaling: original_max_position_embeddings must be at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Ring-lite-class (`bailing_moe`) Mixture-of-Experts transformer. Sizes are counts, not bytes."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    num_experts: int
    experts_per_token: int
    expert_width: int
    num_shared_experts: int
    dense_width: int
    first_dense_layers: int = 0
    qkv_bias: bool = False
    rope_theta: float = 600_000.0
    rope_scaling: RopeScaling | None = None
    max_positions: int = 32_768
    norm_eps: float = 1e-6
    init_std: float = 0.006

    def __post_init__(self) -> None:
        counts = ("num_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
                  "num_experts", "experts_per_token", "expert_width", "dense_width")  # fmt: skip
        for name in counts:
            require(getattr(self, name) >= 1, f"model: {name} is {getattr(self, name)}, it must be at least 1")
        require(self.num_shared_experts >= 0, f"model: num_shared_experts is {self.num_shared_experts}, below 0")
        require(
            0 <= self.first_dense_layers <= self.num_layers,
            f"model: first_dense_layers {self.first_dense_layers} is outside 0..{self.num_layers}",
        )
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"model: {self.num_attention_heads} query heads cannot share {self.num_key_value_heads} KV heads evenly",
        )
        require(
            self.experts_per_token <= self.num_experts,
            f"model: {self.experts_per_token} experts per token of only {self.num_experts} experts",
        )
        require(self.head_dim % 2 == 0, f"model: head_dim {self.head_dim} must be even for rotary embeddings")

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> ModelConfig:
        """Undo `dataclasses.asdict`."""
        scaling = values.get("rope_scaling")
        return cls(**{**values, "rope_scaling": None if scaling is None else RopeScaling(**scaling)})

    @property
    def qkv_rows(self) -> int:
        """Rows of the query, key and value projection together."""
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim

    @property
    def shared_width(self) -> int:
        """Width of the one SwiGLU MLP that stands for all shared experts (0: none)."""
        return self.num_shared_experts * self.expert_width

    def is_moe_layer(self, layer: int) -> bool:
        """Whether the 0-based layer holds experts (the first `first_dense_layers` hold one dense MLP)."""
        return layer >= self.first_dense_layers

    def parameter_counts(self) -> tuple[int, int]:
        """(total, activated) parameters. Activated, as published for Ring-lite, counts the experts of one token and
        everything that all tokens share: attention, norms, router, shared experts, both vocabulary tables."""
        attention = self.hidden_size * self.head_dim * self.num_attention_heads
        attention += (self.hidden_size + self.qkv_bias) * self.qkv_rows
        norms = 2 * self.hidden_size
        dense = 3 * self.hidden_size * self.dense_width
        expert = 3 * self.hidden_size * self.expert_width
        shared = 3 * self.hidden_size * self.shared_width
        router = self.num_experts * self.hidden_size
        moe_layers = self.num_layers - self.first_dense_layers
        common = self.num_layers * (attention + norms) + self.first_dense_layers * dense + moe_layers * (shared + router)
        head = self.vocab_size * self.hidden_size + self.hidden_size
        embedding = self.vocab_size * self.hidden_size
        shared_by_all = common + head + embedding
        total = shared_by_all + moe_layers * self.num_experts * expert
        return total, shared_by_all + moe_layers * self.experts_per_token * expert


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is laid out over processes. Data parallelism takes what the other dimensions leave."""

    tensor: int = 1
    """Tensor-parallel ranks (TP, processes). Above 1, sequence parallelism is on: megatron-core's MoE needs it."""
    pipeline: int = 1
    """Pipeline-parallel ranks (PP, processes)."""
    expert: int = 1
    """Expert-parallel ranks (EP, processes); taken from the data-parallel ones."""
    expert_tensor: int = 1
    """Tensor-parallel ranks inside each expert (ETP, processes)."""

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "expert", "expert_tensor"):
            require(getattr(self, name) >= 1, f"--parallel.{name.replace('_', '-')} is {getattr(self, name)}, below 1")

    @property
    def sequence_parallel(self) -> bool:
        return self.tensor > 1

    def data(self, world_size: int) -> int:
        """Data-parallel ranks left by a world of `world_size` processes."""
        return world_size // (self.tensor * self.pipeline)

    def stage_layers(self, num_layers: int, stage: int) -> range:
        """0-based layers of a pipeline stage. What does not divide evenly goes to the earlier stages: the last one has
        the head besides."""
        each, more = divmod(num_layers, self.pipeline)
        first = stage * each + min(stage, more)
        return range(first, first + each + (stage < more))

    def padded_vocabulary(self, vocab_size: int) -> int:
        """Rows of the vocabulary tables, so that every tensor-parallel rank holds as many. Those behind `vocab_size`
        take part in nothing and are in no checkpoint that leaves this project."""
        return -(-vocab_size // self.tensor) * self.tensor

    def check(self, model: ModelConfig, world_size: int) -> None:
        """Raise `UserError` naming the numbers when `model` cannot be laid out over `world_size` processes."""
        tp, pp, ep, etp = self.tensor, self.pipeline, self.expert, self.expert_tensor
        said = f"TP={tp} PP={pp} EP={ep} ETP={etp} on {world_size} process(es)"
        require(world_size % (tp * pp) == 0, f"layout {said}: TP*PP = {tp * pp} does not divide {world_size}")
        require(
            world_size % (ep * etp * pp) == 0,
            f"layout {said}: EP*ETP*PP = {ep * etp * pp} does not divide {world_size}",
        )
        require(pp <= model.num_layers, f"layout {said}: {model.num_layers} layer(s) are too few for PP={pp} stages")
        require(model.num_experts % ep == 0, f"layout {said}: {model.num_experts} experts do not split over EP={ep}")
        require(
            model.num_key_value_heads % tp == 0,
            f"layout {said}: {model.num_key_value_heads} KV heads do not split over TP={tp}",
        )
        require(
            model.expert_width % etp == 0,
            f"layout {said}: expert width {model.expert_width} does not split over ETP={etp}",
        )
        for name, width in (("shared-expert", model.shared_width), ("dense", model.dense_width)):
            require(width % tp == 0, f"layout {said}: {name} width {width} does not split over TP={tp}")

    def check_exact(self, layer_impl: str) -> None:
        """Raise `UserError` where neither the layout nor the layers' implementation allows --exact."""
        require(layer_impl == "native", f"--exact: --layer-impl {layer_impl} brings products of its own, leave it native")
        said = f"TP={self.tensor} ETP={self.expert_tensor}: sums over ranks are in NCCL's order, set both to 1"
        require(self.tensor == 1 and self.expert_tensor == 1, f"--exact: {said}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW on megatron-core's distributed optimizer."""

    lr: float = 3e-4
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of a cosine decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape after the linear warm-up."""
    warmup_fraction: float = 0.01
    """Linear warm-up, as a fraction of all steps (0..1)."""
    weight_decay: float = 0.1
    """Decoupled weight decay; not applied to norms and other vectors."""
    beta1: float = 0.9
    """Adam's first-moment decay."""
    beta2: float = 0.95
    """Adam's second-moment decay."""
    eps: float = 1e-8
    """Adam's denominator offset."""
    clip_grad: float = field(default=1.0, metadata=UNLIMITED)
    """Global gradient-norm limit (L2; inf: none)."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Adam's moments; bf16 (CUDA) halves their memory and traffic, at 8 bits of precision. Master weights are fp32."""

    def __post_init__(self) -> None:
        require(self.lr > 0 and math.isfinite(self.lr), f"--optimizer.lr is {self.lr}, it must be a positive number")
        require(0 <= self.min_lr <= self.lr, f"--optimizer.min-lr {self.min_lr} is outside 0..lr ({self.lr})")
        require(0 <= self.warmup_fraction <= 1, f"--optimizer.warmup-fraction {self.warmup_fraction} is outside 0..1")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"--optimizer.{name} is {getattr(self, name)}, outside 0..1 (1 excluded)")
        require(0 < self.eps < math.inf, f"--optimizer.eps is {self.eps}, it must be a positive number")
        require(self.clip_grad > 0, f"--optimizer.clip-grad is {self.clip_grad}, it must be positive")
        require(self.weight_decay >= 0, f"--optimizer.weight-decay is {self.weight_decay}, below 0")

    def lr_at(self, step: int, total_steps: int) -> float:
        """Learning rate of the 0-based `step` out of `total_steps`."""
        warmup = math.ceil(self.warmup_fraction * total_steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.schedule == "constant":
            return self.lr
        progress = (step - warmup) / max(1, total_steps - warmup)
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class RouterLossConfig:
    """The MoE router's auxiliary losses (ring-lite report: 1e-5 and 1e-7 in RL)."""

    balance: float = 1e-5
    """Weight of the load-balance loss B = sum_i E * f_i * P_i, summed over layers."""
    z: float = 1e-7
    """Weight of the z-loss, the mean squared logsumexp of the router logits, summed over layers."""

    def __post_init__(self) -> None:
        require(self.balance >= 0 and self.z >= 0, f"--router: weights {self.balance}, {self.z} must not be negative")


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn."""

    temperature: float = 1.0
    """Softmax temperature; 0 takes the most likely token."""
    top_p: float = 1.0
    """Nucleus: the smallest set of tokens with at least this probability is kept, more on a tie (0..1]."""
    top_k: int = 0
    """So many most likely tokens are kept (0: all)."""
    min_p: float = 0.0
    """Tokens with less than this part of the most likely one's probability are cut (0..1; 0: none)."""
    max_new_tokens: int = 24_576
    """Longest response (tokens)."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a response besides the end-of-sequence token; the token stays in it."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a response as soon as it holds one, with special tokens written out or left out; their tokens stay in
    it."""
    repetition_tokens: int = 0
    """End a response whose last so many tokens are one n-gram over and over (0: never)."""
    repetition_ngram: int = 64
    """Longest n-gram that counts as repetition (tokens)."""
    max_batch: int = 256
    """Sequences decoded together on one data-parallel rank."""
    prefill_tokens: int = 8192
    """Prompt tokens computed in one step, at most; longer prompts are computed in pieces, beside the decoding of others."""
    page_size: int = 32
    """Tokens of a page of the KV cache."""
    kv_tokens: int | None = None
    """Tokens whose keys and values one data-parallel rank holds (default: what its requests need, at most 2 GiB on a CPU
    and --sampling.kv-fraction of a GPU)."""
    kv_fraction: float = 0.8
    """Part of a GPU's free memory that the KV cache may take (0..1]."""
    cuda_graphs: bool = True
    """Decode by CUDA graphs where a process holds all layers (PP=1); off: launch each kernel (slower, to compare)."""

    def __post_init__(self) -> None:
        require_temperature(self.temperature, "--sampling.temperature")
        require(0 < self.top_p <= 1, f"--sampling.top-p is {self.top_p}, outside (0, 1]")
        require(0 <= self.min_p <= 1, f"--sampling.min-p is {self.min_p}, outside 0..1")
        require(0 < self.kv_fraction <= 1, f"--sampling.kv-fraction is {self.kv_fraction}, outside (0, 1]")
        require("" not in self.stop_strings, "--sampling.stop-strings: an empty text would end every response")
        least = {"top_k": 0, "repetition_tokens": 0, "repetition_ngram": 1, "max_new_tokens": 1, "max_batch": 1,
                 "prefill_tokens": 1, "page_size": 1, "kv_tokens": 1}  # fmt: skip
        for name, lowest in least.items():
            value = getattr(self, name)
            require(value is None or value >= lowest, f"--sampling.{name.replace('_', '-')} is {value}, below {lowest}")
        require(
            self.repetition_tokens != 1,
            "--sampling.repetition-tokens is 1: give at least 2 tokens, or 0 for none",
        )

    @property
    def whole_distribution(self) -> bool:
        """Whether nothing is cut from the distribution that tokens are drawn from."""
        return self.top_p == 1 and self.top_k == 0 and self.min_p == 0
