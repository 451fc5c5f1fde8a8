"""The memory of one GPU, item by item, at its fullest in training and in sampling; of the pipeline stage that needs most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from megatron_ring.config.declarations import SPARE_PAGES
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.planning.activations import MicroBatchPass, cache_bytes_per_token, passing_in_sampling
from megatron_ring.planning.weights import FP32, TrainingState, fp8_experts, training_state

GIB = 1 << 30
OUTSIDE_TORCH = 4 * GIB
"""Allowance for the CUDA context, NCCL's buffers, workspaces of products, and what the allocator cannot hand out."""
UNEVEN_EXPERTS = 1.25
"""Rows that the fullest expert-parallel rank is planned to get, over those of a balanced router."""
HOST_LINK = 25e9
"""Bytes a second between a GPU and page-locked host memory, as PCIe 4 x16 gives; newer links are faster."""
FP8_EXPERTS = "experts in FP8"
NODE = 8
"""GPUs of a node, which share its host memory."""


@dataclass(frozen=True)
class Work:
    """What a rank computes.

    Attributes:
        tokens: of a training micro-batch; None where nothing is trained.
        micro_batches: of a step on one rank, at least.
        reference: where a second set of weights lies ("device", "host" or "none").
        offload: whether optimizer and gradient buffers are off the device while responses are sampled.
        sampling: None where nothing is sampled.
        requests: responses that one data-parallel rank has to sample at a time.
        longest: prompt and response of the longest request (tokens).
        scorers: shapes of frozen models that lie beside the policy and score, by what they are called.
        offload_scorers: whether these are in host memory while they do not score.
    """

    tokens: int | None = None
    micro_batches: int = 1
    recompute: str = "none"
    moment_itemsize: int = FP32
    reference: str = "none"
    offload: bool = False
    sampling: SamplingConfig | None = None
    requests: int = 0
    longest: int = 0
    scorers: Mapping[str, ModelConfig] = field(default_factory=dict)
    offload_scorers: bool = False


@dataclass(frozen=True)
class Item:
    """A line of the plan."""

    name: str
    size: int
    note: str = ""


@dataclass(frozen=True)
class Cache:
    """The KV cache of one data-parallel rank, in tokens: what it gets, what its requests could come to need at once, and
    what the longest one needs; and the sequences that are decoded together."""

    tokens: int
    wanted: int
    longest: int
    rows: int


@dataclass(frozen=True)
class StageMemory:
    """A rank of one pipeline stage. `held` is there all the time; `training` and `sampling` come on top of it in turn."""

    stage: int
    state: TrainingState
    held: list[Item]
    training: list[Item]
    sampling: list[Item]
    cache: Cache | None

    @property
    def training_peak(self) -> int:
        return _sum(self.held) + _sum(self.training)

    @property
    def sampling_peak(self) -> int:
        return _sum(self.held) + _sum(self.sampling)

    @property
    def needed(self) -> int:
        """Bytes without which the run cannot go: at its fullest, with a cache for the longest request alone."""
        sampling = self.sampling_peak
        if self.cache is not None and self.cache.tokens:
            cache = next(item.size for item in self.sampling if item.name == "KV cache")
            sampling -= cache - cache // self.cache.tokens * min(self.cache.longest, self.cache.tokens)
        return max(self.training_peak, sampling) + OUTSIDE_TORCH


def _sum(items: list[Item]) -> int:
    return sum(item.size for item in items)


def plan_memory(
    model: ModelConfig, parallel: ParallelConfig, world: int, itemsize: int, work: Work, limit: int
) -> StageMemory:
    """The plan of the pipeline stage that needs most; `limit` bytes are there, of which a cache takes its part.

    A layout that `ParallelConfig.check` accepts is a condition.
    """
    stages = [stage_memory(model, parallel, world, itemsize, work, limit, stage) for stage in range(parallel.pipeline)]
    return max(stages, key=lambda stage: stage.needed)


def stage_memory(
    model: ModelConfig, parallel: ParallelConfig, world: int, itemsize: int, work: Work, limit: int, stage: int
) -> StageMemory:
    """As `plan_memory`, of one pipeline stage (0-based)."""
    state = training_state(model, parallel, stage, world, itemsize, work.moment_itemsize, work.tokens is not None)
    held, updating = [Item("weights", state.weights, {2: "bf16", 4: "fp32"}[itemsize])], []
    if work.tokens is not None:
        master = "fp32 master weights and " if itemsize != FP32 else ""
        moments = "fp32" if work.moment_itemsize == FP32 else "bf16"
        shared = f"dense over {state.sharers[0]} rank(s), experts over {state.sharers[1]}"
        updating.append(Item("gradient buffers", state.gradients, "fp32"))
        updating.append(Item("optimizer", state.optimizer, f"{master}{moments} moments; {shared}"))
    if not work.offload:
        held += updating
    if work.reference == "device":
        held.append(Item("reference policy", sum(state.parameters) * itemsize, "on the device"))
    elif work.reference == "host":
        held.append(Item("reference policy", 0, f"{sum(state.parameters) * itemsize / GIB:.1f} GiB of pinned host memory"))
    for name, shape in work.scorers.items():
        weights = training_state(shape, parallel, stage, world, itemsize, FP32, trains=False).weights
        if work.offload_scorers:
            held.append(Item(name, 0, f"{weights / GIB:.1f} GiB of pinned host memory while it does not score"))
        else:
            held.append(Item(name, weights, "frozen, on the device"))
    training = _training(model, parallel, itemsize, work, stage)
    sampling, cache = _sampling(model, parallel, itemsize, work, stage, limit - _sum(held))
    if work.offload:
        training = [*updating, *training]
        sampling.append(Item("optimizer", 0, _on_the_host(state.optimizer, world)))
    return StageMemory(stage, state, held, training, sampling, cache)


def _on_the_host(size: int, world: int) -> str:
    node = min(world, NODE)
    several = f", {node * size / GIB:.1f} for {node} GPUs of a node" if node > 1 else ""
    seconds = f"some {size / HOST_LINK:.1f} s each way at {HOST_LINK / 1e9:.0f} GB/s"
    return f"{size / GIB:.1f} GiB of pinned host memory{several}; {seconds}"


def _training(model: ModelConfig, parallel: ParallelConfig, itemsize: int, work: Work, stage: int) -> list[Item]:
    if work.tokens is None:
        return []
    row_share = UNEVEN_EXPERTS if parallel.expert > 1 else 1.0
    one = MicroBatchPass(model, parallel, work.tokens, itemsize, work.recompute, row_share=row_share)
    layers = parallel.stage_layers(model.num_layers, stage)
    first, last = stage == 0, stage == parallel.pipeline - 1
    # One forward, one backward in turn: a stage is ahead of the last one by the stages between them.
    alive = min(parallel.pipeline - stage, work.micro_batches)
    parts = one.kept(layers, first, last)
    largest = sorted(parts, key=lambda name: -parts[name])[:3]
    told = ", ".join(f"{name} {alive * parts[name] / GIB:.1f}" for name in largest)
    several = f" x {alive} in flight" if alive > 1 else ""
    note = f"{work.tokens:,} tokens{several}, recompute {work.recompute}: {told}"
    passing = {"backward pass of a layer": max(one.passing_in_layer(layer) for layer in layers)}
    if last:
        passing["head: logits in chunks, its gradient in fp32"] = one.passing_in_head()
    name = max(passing, key=lambda name: passing[name])
    uneven = f"; experts' rows {row_share:g} times a balanced router's" if row_share > 1 else ""
    kept = Item("activations kept", alive * sum(parts.values()), note)
    return [kept, Item("largest passing", passing[name], name + uneven)]


def _sampling(
    model: ModelConfig, parallel: ParallelConfig, itemsize: int, work: Work, stage: int, free: int
) -> tuple[list[Item], Cache | None]:
    """Items of sampling, and its cache; `free` bytes are there for both and for what is outside torch."""
    sampling = work.sampling
    if sampling is None:
        return [], None
    items = []
    if sampling.narrow:
        size = fp8_experts(model, parallel, stage)
        items.append(Item(FP8_EXPERTS, size, "a copy to sample with"))
        free -= items[0].size
    each = cache_bytes_per_token(model, parallel, stage, itemsize)
    room = sampling.kv_tokens
    if room is None:
        room = max(0, int((free - OUTSIDE_TORCH) * sampling.kv_fraction)) // each
    rows = sampling.rows("cuda", work.requests, room, work.longest)
    wanted = rows * (work.longest + SPARE_PAGES * sampling.page_size)
    tokens = min(wanted, room)
    cache = Cache(tokens, wanted, work.longest, rows)
    told = f"{tokens:,} tokens: {tokens / max(1, work.longest):.1f} responses of the longest kind at once, of {rows} wanted"
    passing = passing_in_sampling(model, parallel, replace(sampling, max_batch=rows), itemsize)
    items.append(Item("KV cache", tokens * each, told))
    return [*items, Item("largest passing", passing, "a chunk of prompts, or drawing")], cache
