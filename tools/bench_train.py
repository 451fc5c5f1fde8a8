#!/usr/bin/env python
"""Training speed of a slice of the model, beside the hardware's ceilings and other implementations. Prints one JSON object.

    python tools/bench_train.py --preset ring-lite-slice-4 --compare mcore-stock te transformers --profile
    python tools/bench_train.py --optimizer --sequence-length 32768 --sequences 1 --lengths long-tail --recompute full
    python tools/bench_train.py --preset ring-tiny --sequence-length 256 --sequences 8 --optimizer --compare mcore-stock
    torchrun --nproc-per-node 2 tools/bench_train.py --optimizer --expert 2 --compare te

Every contender has the same shape, random weights and tokens, and the mean cross-entropy over all of them as its loss.
Without --optimizer a step is forward, loss and backward into gradients that were None before, without any buffer; with it a
whole training step: clipping and update included, ours through the stages' own trainer, megatron-core's through its schedule
with its distributed optimizer, transformers' with torch's fused AdamW. Part of our head's backward pass happens in
"forward": there logits and their gradients are made together.

FLOPs are those the model needs (causal attention counted half, recomputation not), so repeated work lowers the rate. "mfu"
is the share of the measured GEMM rate; "of_ceiling" the share of the least time: the FLOPs at that rate, and with
--optimizer the optimizer's memory traffic at the measured copy rate.
"""

from __future__ import annotations

import functools
import json
import platform
import sys
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.declarations import parameter_counts
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import UserError, run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:
    import torch

    from megatron_ring.parallel.context import ParallelContext
    from tools.bench_train_measure import Measurement
    from tools.bench_train_work import Contender, PackedTokens

Rival = Literal["mcore-stock", "te", "transformers", "ring-te", "apex", "apex-gradients", "apex-adam"]
APEX: dict[str, Literal["both", "gradients", "adam"]] = {"apex": "both", "apex-gradients": "gradients", "apex-adam": "adam"}
OPTIMIZER_BYTES = 30  # per parameter: read gradient, master and both moments in fp32, write the latter three and bf16


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured."""

    preset: str = "ring-lite-slice-4"
    """Model shape by name."""
    layers: int | None = None
    """Only so many layers of it."""
    sequence_length: int = 8192
    """Tokens of a sequence; with --lengths long-tail of the longest."""
    sequences: int = 2
    """Sequences of this length in a micro-batch; with --lengths long-tail as many tokens as they have."""
    lengths: Literal["equal", "long-tail"] = "equal"
    """long-tail: log-normal, median 1/8 of the longest. Who cannot pack gets padded batches of similar lengths."""
    micro_batches: int = 1
    """Micro-batches of a step, on each data-parallel rank."""
    optimizer: bool = False
    """Measure whole training steps: clipping and the optimizer's update too."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Our optimizer's moments."""
    recompute: Literal["none", "experts", "full"] = "none"
    """What the backward pass computes again instead of keeping it."""
    layer_impl: Literal["native", "te"] = "native"
    """Layers of our model: torch's and our own kernels, or Transformer Engine's modules."""
    compare: tuple[Rival, ...] = ()
    """Others to measure: megatron-core as it comes, the same on Transformer Engine, transformers; ours on the second, and
    with NVIDIA Apex's weight gradients and Adam, or one of them."""
    repeats: int = 3
    """Rounds of each contender."""
    steps: int = 5
    """Steps of a round."""
    warmup: int = 3
    """Steps before the first round."""
    interleave: bool | None = None
    """Keep all contenders in memory and take their rounds in turn (peak memory is then of all); default: on the CPU."""
    tensor: int = 1
    """Tensor-parallel ranks."""
    expert: int = 1
    """Expert-parallel ranks."""
    pipeline: int = 1
    """Pipeline-parallel ranks."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Parameters' dtype; auto: bf16 on CUDA, fp32 on the CPU."""
    profile: bool = False
    """Also the time by kind of kernel (on the CPU: of torch operation), from two steps more."""
    seed: int = 0
    """Seed of tokens and lengths."""

    def __post_init__(self) -> None:
        for name in ("sequence_length", "sequences", "micro_batches", "repeats", "steps", "warmup"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} is {getattr(self, name)}, below 1")
        require(self.layers is None or self.layers >= 1, f"--layers is {self.layers}, below 1")


def main(config: Bench) -> None:
    prepare()
    if TYPE_CHECKING:
        from tools.bench_train_measure import add_rates, speedups
    else:
        from bench_train_measure import add_rates, speedups
    from megatron_ring.parallel import context as parallel_context
    from megatron_ring.run.stage import resolve_dtype

    shape = get_preset(config.preset)
    shape = replace(shape, num_layers=config.layers or shape.num_layers)
    parallel = ParallelConfig(tensor=config.tensor, expert=config.expert, pipeline=config.pipeline)
    if parallel_context.world_size_from_environment() > 1 and not config.optimizer:
        raise UserError("several processes reduce their gradients in the trainer: give --optimizer")
    context = parallel_context.initialize(parallel, shape, config.seed)
    dtype = resolve_dtype(config.precision)
    batches = draw_batches(config, shape, context)
    flops, tokens = workload(shape, context, batches)
    names = ["ring", *config.compare]
    found: dict[str, Any] = {name: {} for name in names}
    rates = [measure_ceilings(context, dtype)]
    together = config.interleave if config.interleave is not None else context.device.type == "cpu"
    for group in [names] if together else [[name] for name in names]:
        found |= measure_group(config, group, shape, context, dtype, batches)
        rates.append(measure_ceilings(context, dtype))
    ceiling = {name: max(rate[name] for rate in rates) for name in rates[0]}
    for result in found.values():
        if "error" not in result:
            add_rates(result, flops, tokens, least_ms(config, shape, context, flops, ceiling), ceiling, context.world_size)
    if context.is_main:
        out = describe(config, shape, context, dtype, batches) | {"gflops_per_token": flops / tokens / 1e9}
        out |= {"ceilings": {**ceiling, "each": rates}, "contenders": found, "ring_over": speedups(found)}
        print(json.dumps(out), flush=True)


def draw_batches(config: Bench, shape: ModelConfig, context: ParallelContext) -> list[PackedTokens]:
    """This data-parallel rank's micro-batches."""
    if TYPE_CHECKING:
        from tools.bench_train_work import draw_lengths, draw_tokens
    else:
        from bench_train_work import draw_lengths, draw_tokens

    seeds = [config.seed + 1000 * context.data_rank + number for number in range(config.micro_batches)]
    return [
        draw_tokens(draw_lengths(config.lengths, config.sequences, config.sequence_length, seed), shape.vocab_size, seed,
                    context.device)
        for seed in seeds
    ]  # fmt: skip


def workload(shape: ModelConfig, context: ParallelContext, batches: list[PackedTokens]) -> tuple[float, int]:
    """FLOPs and tokens of a step, over all data-parallel ranks."""
    if TYPE_CHECKING:
        from tools.bench_train_work import training_flops
    else:
        from bench_train_work import training_flops
    from megatron_ring.parallel import collectives

    flops = sum(training_flops(shape, batch.lengths) for batch in batches)
    tokens = sum(batch.tokens.numel() for batch in batches)
    everyone = collectives.gather_over_data((flops, tokens))
    return sum(flops for flops, _ in everyone), sum(tokens for _, tokens in everyone)


def measure_ceilings(context: ParallelContext, dtype: torch.dtype) -> dict[str, float]:
    if TYPE_CHECKING:
        from tools.bench_train_measure import ceilings, free_memory
    else:
        from bench_train_measure import ceilings, free_memory
    rates = ceilings(context.device, dtype)
    free_memory()
    say(context, "ceilings: " + ", ".join(f"{name} {rate:.4g}" for name, rate in rates.items()))
    return rates


def build(
    name: str, config: Bench, shape: ModelConfig, context: ParallelContext, dtype: torch.dtype, batches: list[PackedTokens]
) -> Contender:
    """The contender called `name`."""
    if TYPE_CHECKING:
        from tools import bench_train_ring as ring
        from tools import bench_train_rivals as rivals
    else:
        import bench_train_ring as ring
        import bench_train_rivals as rivals
    common = (shape, context, dtype, batches, config.optimizer, config.recompute)
    if name == "transformers":
        return rivals.build_transformers(*common)
    if name in ("mcore-stock", "te"):
        return rivals.build_mcore(name == "te", *common)
    model = ring.build_ring(shape, context, dtype, "te" if name == "ring-te" else config.layer_impl, config.recompute)
    if config.optimizer:
        return ring.TrainedRing(model, context, batches, config.moments, APEX.get(name, "off"))
    require(name not in APEX, f"--compare {name}: give --optimizer, without which there are no buffers and no update")
    return ring.BareRing(model, batches)


def measure_group(config: Bench, names: list[str], *common: Any) -> dict[str, dict[str, Any]]:
    """Results of contenders that are in memory together, their rounds in turn; all are dropped at the end."""
    if TYPE_CHECKING:
        from tools.bench_train_measure import Measurement, free_memory, held_gib, profile
    else:
        from bench_train_measure import Measurement, free_memory, held_gib, profile
    context = common[1]
    results: dict[str, dict[str, Any]] = {}
    measurements: dict[str, Measurement] = {}

    def attempt(name: str, work: Any) -> None:
        """A rival that does not run must not take the others with it."""
        if name in results and "error" in results[name]:
            return
        try:
            work()
        except Exception as error:
            if name == "ring":
                raise
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            results[name] = {"error": f"{type(error).__name__}: {lines[0][:300]}"}
            measurements.pop(name, None)
            say(context, f"{name}: {results[name]['error']}")

    def start(name: str) -> None:
        say(context, f"{name}: building, {held_gib():.2f} GiB held by what was before")
        measurements[name] = Measurement(build(name, config, *common), config.warmup)

    def finish(name: str) -> None:
        results[name] = measurements[name].result()
        if config.profile:
            results[name] |= profile(measurements[name].contender)
        say(context, f"{name}: {results[name]['step_ms']:.1f} ms a step, loss {results[name]['loss']:.3f}")

    for name in names:
        attempt(name, functools.partial(start, name))
    for _ in range(config.repeats):
        for name in names:
            attempt(name, lambda name=name: measurements[name].round(config.steps))
    for name in names:
        attempt(name, functools.partial(finish, name))
    measurements.clear()
    free_memory()
    return results


def least_ms(config: Bench, shape: ModelConfig, context: ParallelContext, flops: float, ceiling: dict[str, float]) -> float:
    """Milliseconds of a step in which nothing but products and the optimizer's memory traffic takes time."""
    least = flops / context.world_size / ceiling["gemm_tflops"] / 1e9
    if config.optimizer:
        held = parameter_counts(shape)[0] / context.world_size  # the distributed optimizer splits them
        least += OPTIMIZER_BYTES * held / ceiling["copy_gb_per_second"] / 1e6
    return least


def describe(
    config: Bench, shape: ModelConfig, context: ParallelContext, dtype: torch.dtype, batches: list[PackedTokens]
) -> dict[str, Any]:
    """What was measured, on what."""
    import torch

    cuda = context.device.type == "cuda"
    lengths = sorted(length for batch in batches for length in batch.lengths)
    packages = ("torch", "triton", "megatron-core", "transformer-engine", "transformers")
    return {
        "preset": config.preset, "layers": shape.num_layers, "parameters": parameter_counts(shape)[0],
        "layer_impl": config.layer_impl, "recompute": config.recompute, "optimizer": config.optimizer,
        "precision": str(dtype).removeprefix("torch."), "tensor": config.tensor, "expert": config.expert,
        "pipeline": config.pipeline, "processes": context.world_size, "micro_batches": len(batches),
        "sequences": len(lengths), "lengths": {"kind": config.lengths, "min": lengths[0], "max": lengths[-1],
                                               "median": lengths[len(lengths) // 2]},
        "tokens_per_rank": sum(lengths),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} thread(s)",
        "python": platform.python_version(), "versions": {name: installed(name) for name in packages},
    }  # fmt: skip


def installed(package: str) -> str | None:
    """The version of a package, None where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def say(context: ParallelContext, text: str) -> None:
    """Progress, on stderr."""
    if context.is_main:
        print(f"bench_train: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_main(lambda: main(parse(Bench, "bench_train.py", "Training speed beside ceilings and other implementations.")))
