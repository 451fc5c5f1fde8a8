"""The least time that a step of the sampler can take on a machine: what it must read, and what it must multiply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_ring.config.declarations import fp8_bytes
from megatron_ring.config.model import ModelConfig

if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
    from megatron_ring.sampler.sampler import Sampler
    from tools.bench_train_work import training_flops
else:
    from bench_train_work import training_flops


@dataclass(frozen=True)
class Floor:
    """Of one rank.

    Attributes:
        rates: measured: `read_gb_per_second`, `gemm_tflops`.
        tensor: tensor-parallel ranks, which share the products.
        expert_ranks: whose tokens choose among this rank's experts.
        experts: bytes of the routed experts' weights, as they are read.
        others: bytes of all other weights, the embedding aside.
        token_bytes: keys and values of a token.
    """

    shape: ModelConfig
    rates: Mapping[str, float]
    tensor: int
    expert_ranks: int
    experts: float
    others: float
    token_bytes: float

    @classmethod
    def of(cls, sampler: Sampler, rates: Mapping[str, float]) -> Floor:
        model, layout = sampler.model, sampler.context.config
        sizes = {name: p.nbytes for name, p in model.named_parameters() if not name.startswith("embedding")}
        experts = sum(size for name, size in sizes.items() if ".experts." in name)
        others = sum(sizes.values()) - experts
        if sampler.sampling.narrow:
            experts = sum(fp8_bytes(p.shape) for name, p in model.named_parameters() if ".experts." in name)
        shape, itemsize = model.ring_config, next(model.parameters()).itemsize
        token = 2 * len(model.local_layers) * (shape.num_key_value_heads // layout.tensor) * shape.head_dim * itemsize
        return cls(shape, rates, layout.tensor, layout.expert, experts, others, token)

    def chosen(self, rows: int) -> float:
        """The share of the experts that so many tokens of each rank choose, were every choice as likely."""
        return 1 - (1 - self.shape.experts_per_token / self.shape.num_experts) ** (rows * self.expert_ranks)

    def decoding(self, rows: int, held: int) -> tuple[float, float]:
        """Seconds to read, and to multiply, in a pass of `rows` sequences with `held` tokens in all."""
        read = self.others + self.chosen(rows) * self.experts + held * self.token_bytes
        # The FLOPs of a token are linear in the keys before it.
        first, key = self._flops(0, 1), self._flops(1, 1) - self._flops(0, 1)
        head = 2.0 * self.shape.hidden_size * self.shape.vocab_size
        flops = (rows * (first + head) + held * key) / self.tensor
        return read / self.rates["read_gb_per_second"] / 1e9, flops / self.rates["gemm_tflops"] / 1e12

    def prefill(self, start: int, count: int) -> float:
        """Seconds to multiply `count` tokens of a prompt from position `start`; no logits are made."""
        return self._flops(start, count) / self.tensor / self.rates["gemm_tflops"] / 1e12

    def _flops(self, start: int, count: int) -> float:
        def up_to(tokens: int) -> float:
            head = 2.0 * tokens * self.shape.hidden_size * self.shape.vocab_size
            return training_flops(self.shape, [tokens]) / 3 - head

        return up_to(start + count) - up_to(start)
