"""What forward and backward passes hold besides weights, on one rank: derived from what the layers keep for their backward
pass (`model/layer.py`, `model/kernels/`, `model/expert_exchange.py`) and from what passes through memory beside it.

Suffixes as there: t tokens, n token-slots at the experts, h hidden, f expert width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from megatron_ring.config.declarations import (
    VOCABULARY_TABLES,
    Shape,
    chunk_tokens,
    declared_weights,
    kv_bytes,
    layer_weights,
)
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import SamplingConfig

FP32 = INT32 = 4
INT64 = 8


@dataclass(frozen=True)
class MicroBatchPass:
    """One micro-batch on one rank.

    Attributes:
        tokens: of the micro-batch, T.
        itemsize: bytes of a weight and of an activation.
        recompute: as `--recompute`.
        uneven: whether packed sequences differ in length; attention keeps its result twice then.
        row_share: rows that this rank's experts get, over those of a balanced router; above 1 where one gets more.
        swiglu_kept: whether experts whose rows are not exchanged keep SwiGLU's result, as on CUDA.
    """

    model: ModelConfig
    parallel: ParallelConfig
    tokens: int
    itemsize: int
    recompute: str = "none"
    uneven: bool = True
    row_share: float = 1.0
    swiglu_kept: bool = True

    @property
    def local(self) -> int:
        """Tokens of this tensor-parallel rank outside attention and MLPs (sequence parallelism)."""
        return self.tokens // self.parallel.tensor

    @property
    def rows(self) -> int:
        """Token-slots that this rank's experts compute."""
        slots = self.local * self.model.experts_per_token * self.parallel.expert_tensor
        return int(slots * self.row_share) if self.parallel.expert > 1 else slots

    @property
    def hidden(self) -> int:
        """Bytes of one [T/TP, hidden]."""
        return self.local * self.model.hidden_size * self.itemsize

    def weights(self, layer: int) -> dict[str, Shape]:
        """What this rank holds of the 0-based layer's weights, by name within it."""
        declared = layer_weights(self.model, layer)
        return {name: weight.local_shape(self.parallel) for name, weight in declared.items()}

    def kept_by_layer(self, layer: int) -> dict[str, int]:
        """Bytes that the 0-based layer keeps from its forward to its backward pass, by what they are."""
        if self.recompute == "full":
            return {"layer inputs": self.hidden}
        m, weights, column = self.model, self.weights(layer), self.tokens * self.itemsize
        results = (2 if self.uneven else 1) * weights["self_attention.linear_proj.weight"][1] * column
        found = {
            "layer inputs": self.hidden,
            "norms": 3 * self.hidden + 2 * self.local * FP32,  # both results, the second's input, reciprocal norms
            "q, k, v": weights["self_attention.linear_qkv.weight"][0] * column,
            "attention": results + self.tokens * m.num_attention_heads // self.parallel.tensor * FP32,
        }
        if not m.is_moe_layer(layer):
            return found | {"dense MLP": 3 * weights["mlp.linear_fc2.weight"][1] * column}
        slots = self.local * m.experts_per_token
        found["router"] = self.local * (m.num_experts * FP32 + 1) + slots * (FP32 + INT64)
        exchanged = self.parallel.expert > 1 and self.parallel.expert_tensor == 1
        if m.shared_width:
            found["shared experts"] = 3 * weights["mlp.shared_experts.linear_fc2.weight"][1] * column
            if exchanged:
                found["shared experts"] += self.hidden  # their result, which its gradient is sent through
        found["experts"] = self._kept_by_experts(slots, exchanged, weights["mlp.experts.down"][2])
        return found

    def _kept_by_experts(self, slots: int, exchanged: bool, width: int) -> int:
        m, rows = self.model, self.rows
        in_nh = rows * m.hidden_size * self.itemsize
        columns = 0 if self.recompute == "experts" else 3 if self.swiglu_kept and not exchanged else 2
        product_nf = columns * width * rows * self.itemsize
        places = 2 * INT64 * slots
        if exchanged:
            places += (3 * INT64) * rows  # where rows go here, and whose they are
        elif self.parallel.expert_tensor > 1:
            places = 2 * self.local * m.num_experts + INT64 * slots  # of megatron-core's dispatcher
        elif self.recompute == "experts":
            in_nh = 0  # gathered again from the layer's normed tokens
        return in_nh + product_nf + rows * FP32 + places

    def kept(self, layers: range, first: bool, last: bool) -> dict[str, int]:
        """Bytes that a pipeline stage keeps of one micro-batch, by what they are."""
        total: dict[str, int] = {}
        for layer in layers:
            for name, size in self.kept_by_layer(layer).items():
                total[name] = total.get(name, 0) + size
        # The last norm's input and result, or what goes on to the next stage.
        total["norms"] = total.get("norms", 0) + (2 * self.hidden + self.local * FP32 if last else self.hidden)
        total["positions"] = 2 * self.tokens * self.model.head_dim * FP32 + (self.tokens * INT64 if first else 0)
        return {name: size for name, size in total.items() if size}

    def passing_in_layer(self, layer: int) -> int:
        """Most that is in memory at once, beside what all layers keep, while the backward pass goes through one layer:
        gradients of its rows and of its experts' weights."""
        m, parallel, weights = self.model, self.parallel, self.weights(layer)
        again = 0
        if self.recompute == "full":
            again = sum(replace(self, recompute="none").kept_by_layer(layer).values()) - self.hidden
        gathered = 2 * self.tokens * m.hidden_size * self.itemsize if parallel.tensor > 1 else 0
        incoming = 2 * self.hidden
        if not m.is_moe_layer(layer):
            return again + gathered + incoming + 4 * weights["mlp.linear_fc2.weight"][1] * self.tokens * self.itemsize
        width = weights["mlp.experts.down"][2]
        by_weights = sum(prod(weights[f"mlp.experts.{name}"]) for name in ("gate_up", "down")) * self.itemsize
        if parallel.expert * parallel.expert_tensor == 1:
            columns = max(m.hidden_size + 4 * width, 2 * m.hidden_size + 2 * width)
            late = self.rows * (2 * m.hidden_size + 2 * width) * self.itemsize + by_weights
        else:  # rows come, are sorted, are sent back
            columns = 3 * m.hidden_size
            late = self.rows * (4 * m.hidden_size + 3 * width) * self.itemsize + by_weights
        if self.recompute == "experts":
            again = self.rows * (m.hidden_size + 2 * width) * self.itemsize
        return again + gathered + incoming + max(self.rows * columns * self.itemsize, late)

    def passing_in_head(self) -> int:
        """Most that the head holds at once: gradients of its weight (fp32) and of the hidden states, and a chunk of logits;
        or, in its backward pass, the weight's gradient in both dtypes. A score's is that of the hidden states alone."""
        if self.model.head == "score":
            return self.hidden
        head = next(weight for weight in declared_weights(self.model) if weight.name == VOCABULARY_TABLES[1])
        classes, hidden = head.local_shape(self.parallel)
        weight, states = classes * hidden, self.tokens * hidden * self.itemsize
        chunk = min(chunk_tokens(classes), self.tokens) * classes * self.itemsize
        gathered = states if self.parallel.tensor > 1 else 0
        return max(weight * FP32 + chunk + 2 * states + gathered, weight * (FP32 + self.itemsize) + 2 * states)


def passing_in_sampling(model: ModelConfig, parallel: ParallelConfig, sampling: SamplingConfig, itemsize: int) -> int:
    """Most that a step of the sampler holds beside weights and cache: a layer over a chunk of prompts, or the logits that
    tokens are drawn from, which tensor-parallel ranks put together."""
    prompts = MicroBatchPass(model, parallel, sampling.prefill_tokens, itemsize)
    layer = sum(prompts.kept_by_layer(model.num_layers - 1).values()) + 3 * prompts.rows * model.hidden_size * itemsize
    if sampling.narrow:  # a long chunk's products want a layer's experts wide
        weights = prompts.weights(model.num_layers - 1)
        layer += sum(prod(shape) for name, shape in weights.items() if name.startswith("mlp.experts.")) * itemsize
    copies = 1 if parallel.tensor == 1 else 2
    logits = sampling.most_rows("cuda") * model.vocab_size * itemsize * copies
    return max(layer, logits)


def cache_bytes_per_token(model: ModelConfig, parallel: ParallelConfig, stage: int, itemsize: int) -> int:
    """Keys and values of one token on a rank of a pipeline stage."""
    return kv_bytes(model, parallel, len(parallel.stage_layers(model.num_layers, stage)), itemsize)
