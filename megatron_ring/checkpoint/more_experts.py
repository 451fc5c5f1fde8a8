"""A Ring model with more experts that computes what it did: copies of its experts, side by side.

With r copies of each expert and of its row in the router, the softmax gives each copy 1/r of the expert's probability. The
r*k likeliest are all copies of the k likeliest experts. Their weights, which sum to 1, add up to those of the experts. An
expert bias becomes 1/r of itself, as does the probability that it is added to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from megatron_ring.checkpoint.hf_config import read_config
from megatron_ring.checkpoint.hf_tensors import PublishedTensors, list_problems
from megatron_ring.checkpoint.manifest import NAME, model_config_of
from megatron_ring.checkpoint.reading import CheckpointReader
from megatron_ring.checkpoint.tensor_rules import EXPERT_BIAS, rules_for
from megatron_ring.checkpoint.upcycling import seeded_normal
from megatron_ring.config.model import ModelConfig
from megatron_ring.errors import UserError

EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")
ROUTER = ".mlp.gate.weight"


@dataclass(frozen=True)
class RingModel:
    """A Ring model whose tensors are all there. `load`: the published tensor of a name, valid until the next call."""

    shape: ModelConfig
    load: Callable[[str], torch.Tensor]


@contextmanager
def open_ring_model(source: Path) -> Iterator[RingModel]:
    """The model of a checkpoint, or of a folder in the published layout. Raises `UserError` for anything wrong with it."""
    if (source / NAME).is_file():
        shape = model_config_of(source)
        reader, rules = CheckpointReader(source), {rule.source: rule for rule in rules_for(shape)}
        if problems := reader.problems(list(rules.values())):
            raise UserError(f"{source}: {list_problems(problems)}")
        try:
            yield RingModel(shape, lambda name: rules[name].to_published(reader.read(rules[name].target, rules[name].box)))
        finally:
            reader.close()
        return
    shape, norm_head = read_config(source)
    published = PublishedTensors(source, shape, norm_head)
    try:
        yield RingModel(shape, published)
        published.check_finite()
    finally:
        published.close()


def grown_shape(model: ModelConfig, experts: int, top_k: int | None) -> ModelConfig:
    """The shape with so many experts, of which each token goes to `top_k` (None: as many as it takes to compute the same).

    Raises:
        UserError: the model is none whose experts can be copied, or the numbers do not fit.
    """
    times, rest = divmod(experts, model.num_experts)
    if model.head != "vocabulary":
        raise UserError("a reward model: give a language model")
    if model.experts_per_token == 1:
        raise UserError("its tokens go to one expert, whose weight is not made to sum to 1: more experts would change it")
    if rest or times < 2:
        many = f"{2 * model.num_experts}, {3 * model.num_experts}, …"
        raise UserError(f"--experts {experts}: the model has {model.num_experts}; give a multiple of them ({many})")
    return replace(model, num_experts=experts, experts_per_token=top_k or times * model.experts_per_token)


@dataclass(frozen=True)
class MoreExperts:
    """Gives the grown model's published tensors by name, one at a time; valid until the next call.

    Args:
        noise: normal noise on the copies, not on the experts themselves, relative to each matrix's own standard deviation.
        seed: of the noise; each tensor's numbers depend on it and the tensor's name alone.
    """

    model: RingModel
    shape: ModelConfig
    noise: float
    seed: int

    def __call__(self, name: str) -> torch.Tensor:
        before = self.model.shape.num_experts
        times = self.shape.num_experts // before
        if (found := EXPERT.search(name)) is not None:
            expert = int(found[1])
            weight = self.model.load(name[: found.start(1)] + str(expert % before) + name[found.end(1) :])
            if not self.noise or expert < before:
                return weight
            return weight + self.noise * weight.float().std() * seeded_normal(self.seed, name, weight.shape)
        tensor = self.model.load(name)
        if name.endswith(ROUTER):
            return tensor.repeat(times, 1)
        return tensor.repeat(times) / times if name.endswith(EXPERT_BIAS) else tensor
