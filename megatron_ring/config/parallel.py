"""Layout of a model over processes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ring.config.checks import require
from megatron_ring.config.model import ModelConfig


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
        layout = f"TP={tp} PP={pp} EP={ep} ETP={etp} on {world_size} process(es)"
        require(world_size % (tp * pp) == 0, f"layout {layout}: TP*PP = {tp * pp} does not divide {world_size}")
        require(
            world_size % (ep * etp * pp) == 0,
            f"layout {layout}: EP*ETP*PP = {ep * etp * pp} does not divide {world_size}",
        )
        require(pp <= model.num_layers, f"layout {layout}: {model.num_layers} layer(s) are too few for PP={pp} stages")
        require(model.num_experts % ep == 0, f"layout {layout}: {model.num_experts} experts do not split over EP={ep}")
        require(
            model.num_key_value_heads % tp == 0,
            f"layout {layout}: {model.num_key_value_heads} KV heads do not split over TP={tp}",
        )
        require(
            model.expert_width % etp == 0,
            f"layout {layout}: expert width {model.expert_width} does not split over ETP={etp}",
        )
        for name, width in (("shared-expert", model.shared_width), ("dense", model.dense_width)):
            require(width % tp == 0, f"layout {layout}: {name} width {width} does not split over TP={tp}")

    def check_exact(self, layer_impl: str) -> None:
        """Raise `UserError` where neither the layout nor the layers' implementation allows --exact."""
        require(layer_impl == "native", f"--exact: --layer-impl {layer_impl} brings products of its own, leave it native")
        layout = f"TP={self.tensor} ETP={self.expert_tensor}: sums over ranks are in NCCL's order, set both to 1"
        require(self.tensor == 1 and self.expert_tensor == 1, f"--exact: {layout}")
