"""Sizes that the program chooses for reinforcement: where `auto` is asked for, how long a training micro-batch may be and
how many sequences are decoded together; and whether the KV cache stays while the policy is trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from megatron_ring.config.declarations import CACHE_SLACK
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.planning.memory import FP8_EXPERTS, GIB, OUTSIDE_TORCH, StageMemory, Work, plan_memory

MOMENTS = {"fp32": 4, "bf16": 2}
USABLE = 0.9
"""Part of a GPU's memory that the plan of a chosen size may fill: plans are right to a few per cent."""
LENGTHS = (65_536, 49_152, 32_768, 24_576, 16_384, 12_288, 8192, 6144, 4096, 3072, 2048, 1024)
"""Lengths of a micro-batch to choose from. Longer ones have not been measured."""
CPU_LENGTH = 8192


def choose_sizes(
    config: RLConfig, shape: ModelConfig, world: int, itemsize: int, longest: int, limit: int | None,
    scorers: Mapping[str, ModelConfig] = MappingProxyType({}),
) -> tuple[RLConfig, str]:  # fmt: skip
    """The configuration with numbers in the place of `auto`, and what to say of them; "" where nothing was to be chosen.

    Args:
        config: resolved, in a layout that fits.
        itemsize: bytes of a weight.
        longest: prompt and response of the longest request (tokens).
        limit: bytes that this process may use on its GPU; None on a CPU.
        scorers: shapes of models that lie beside the policy and score, by what they are called.
    """
    auto_length, auto_rows = config.data.micro_batch_tokens == "auto", config.sampling.max_batch == "auto"
    if not (auto_length or auto_rows):
        return config, ""
    data, tensor = config.parallel.data(world), config.parallel.tensor
    requests = rl_work(config, data, longest, 1).requests
    if limit is None:
        length = max(CPU_LENGTH, -(-longest // 64) * 64)
        rows = config.sampling.rows("cpu", requests, requests * longest, longest)
    else:
        length, plan = _longest_that_fits(config, shape, world, itemsize, longest, limit, scorers)
        rows = plan.cache.rows if plan.cache is not None else 1
    chosen, told = config, []
    if auto_length:
        length = -(-length // tensor) * tensor
        chosen = replace(chosen, data=replace(chosen.data, micro_batch_tokens=length))
        told.append(f"micro-batches of up to {length:,} tokens")
    if auto_rows:
        chosen = replace(chosen, sampling=replace(chosen.sampling, max_batch=rows))
        told.append(f"{rows:,} sequences decoded together")
    where = "a CPU" if limit is None else f"{limit / GIB:.1f} GiB of a GPU"
    return chosen, f"{' and '.join(told)}, chosen for {where}"


def with_sizes_of(config: RLConfig, recorded: Mapping[str, Any] | None) -> RLConfig:
    """The configuration with the sizes of the run so far, as its config.yaml has them, in the place of `auto`."""
    recorded = recorded or {}
    length, rows = (recorded.get(group, {}).get(name) for group, name in
                    (("data", "micro_batch_tokens"), ("sampling", "max_batch")))  # fmt: skip
    if config.data.micro_batch_tokens == "auto" and isinstance(length, int):
        config = replace(config, data=replace(config.data, micro_batch_tokens=length))
    if config.sampling.max_batch == "auto" and isinstance(rows, int):
        config = replace(config, sampling=replace(config.sampling, max_batch=rows))
    return config


def halved(config: RLConfig, longest: int) -> RLConfig | None:
    """The configuration with half of both sizes, where memory ran out; None where they can be no smaller."""
    length, rows, tensor = config.data.capacity // 2, config.sampling.most_rows("cuda") // 2, config.parallel.tensor
    length = -(-max(length, longest) // tensor) * tensor
    if length >= config.data.capacity and rows < 1:
        return None
    data = replace(config.data, micro_batch_tokens=min(length, config.data.capacity))
    return replace(config, data=data, sampling=replace(config.sampling, max_batch=max(1, rows)))


def cache_can_stay(
    config: RLConfig,
    shape: ModelConfig,
    world: int,
    itemsize: int,
    longest: int,
    limit: int,
    scorers: Mapping[str, ModelConfig] = MappingProxyType({}),
) -> bool:
    """Whether the KV cache, with the CUDA graphs that name it, has room beside training: then they serve step after step."""
    judges = "judge" in scorers  # its own cache takes the place of the policy's in each step
    if config.offload_optimizer or judges or (scorers and config.rewards.offload):
        return False
    plan = _plan(config, shape, world, itemsize, longest, limit, config.data.capacity, scorers)
    kept = {item.name: item.size for item in plan.sampling}
    size = int(kept.get("KV cache", 0) * CACHE_SLACK) + kept.get(FP8_EXPERTS, 0)
    return plan.training_peak + size + OUTSIDE_TORCH <= USABLE * limit


def rl_work(config: RLConfig, data: int, longest: int, tokens: int | None = None) -> Work:
    """What a rank of an RL run computes on `data` data-parallel ranks; `tokens` of a micro-batch instead of the
    configuration's."""
    return Work(
        # How many micro-batches there will be is known from below only: as many are alive as the pipeline is deep.
        tokens=config.data.capacity if tokens is None else tokens, micro_batches=config.parallel.pipeline,
        recompute=config.recompute, moment_itemsize=MOMENTS[config.optimizer.moments],
        reference=config.reference.place or "none", offload=config.offload_optimizer, sampling=config.sampling,
        requests=-(-config.prompts_per_step // data) * config.samples_per_prompt, longest=longest,
    )  # fmt: skip


def _plan(
    config: RLConfig, shape: ModelConfig, world: int, itemsize: int, longest: int, limit: int, tokens: int,
    scorers: Mapping[str, ModelConfig],
) -> StageMemory:  # fmt: skip
    work = replace(
        rl_work(config, config.parallel.data(world), longest, tokens),
        scorers=scorers,
        offload_scorers=config.rewards.offload,
    )
    return plan_memory(shape, config.parallel, world, itemsize, work, limit)


def _longest_that_fits(
    config: RLConfig,
    shape: ModelConfig,
    world: int,
    itemsize: int,
    longest: int,
    limit: int,
    scorers: Mapping[str, ModelConfig],
) -> tuple[int, StageMemory]:
    """The length of a micro-batch, and the plan with it. Where none fits, the least that holds the longest response."""
    if config.data.micro_batch_tokens != "auto":
        tokens = config.data.micro_batch_tokens
        return tokens, _plan(config, shape, world, itemsize, longest, limit, tokens, scorers)
    least = -(-longest // 64) * 64
    for tokens in (*(length for length in LENGTHS if length > least), least):
        plan = _plan(config, shape, world, itemsize, longest, limit, tokens, scorers)
        if plan.training_peak + OUTSIDE_TORCH <= USABLE * limit:
            break
    return tokens, plan
