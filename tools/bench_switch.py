#!/usr/bin/env python
"""What it costs to go from training to sampling and back, and whether anything stays behind. Prints one JSON object.

    python tools/bench_switch.py --preset ring-lite-slice-4 --switches 100

Each switch is a training step, then a call of the sampler. What it costs is what the first such call and the first such step
take beyond those that follow without a switch between them: the cache is taken, graphs are captured, memory changes hands.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.cli import parse
from megatron_ring.config import OptimizerConfig, ParallelConfig, RouterLossConfig, SamplingConfig, require
from megatron_ring.errors import run_main
from megatron_ring.presets import get_preset


@dataclass(frozen=True, kw_only=True)
class BenchSwitch:
    """A training step of one packed micro-batch, and responses to random prompts."""

    preset: str = "ring-tiny"
    """Model shape."""
    switches: int = 100
    """Times that training and sampling take turns."""
    tokens: int = 2048
    """Of the training step."""
    requests: int = 64
    """Responses of a call of the sampler."""
    prompt_tokens: int = 64
    """Tokens of a prompt."""
    new_tokens: int = 16
    """Tokens of a response."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name in ("switches", "tokens", "requests", "prompt_tokens", "new_tokens"):
            least = 3 if name == "switches" else 1
            require(getattr(self, name) >= least, f"--{name.replace('_', '-')} is {getattr(self, name)}, below {least}")


def main(config: BenchSwitch) -> None:
    import torch

    from megatron_ring.data.packing import pack_sequences
    from megatron_ring.data.sequences import TokenSequence
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.parallel.device import has_cuda, synchronize
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    shape = get_preset(config.preset)
    here = context.initialize(config.parallel, shape, 0)
    model = build_model(shape, here, RouterLossConfig(1e-2, 1e-3), torch.bfloat16 if has_cuda() else torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    trainer = Trainer(model, here, OptimizerConfig(lr=1e-6))
    sampler = Sampler(model, here, config.sampling, eos_id=-1)
    generator = torch.Generator().manual_seed(here.data_rank)
    drawn = torch.randint(shape.vocab_size, (config.requests, config.prompt_tokens), generator=generator).tolist()
    requests = [GenerationRequest(prompt, seed, config.new_tokens) for seed, prompt in enumerate(drawn)]
    tokens = torch.randint(shape.vocab_size, (config.tokens,), generator=generator).tolist()
    batches = [pack_sequences([TokenSequence(tokens, [1] * config.tokens)], config.tokens, 0)]

    def timed(work: Callable[[], object]) -> float:
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        return time.perf_counter() - began

    def train() -> None:
        sampler.release()
        trainer.train_step(batches, SFTLoss(), 1e-6)

    def sample() -> None:
        sampler.generate(requests)

    times: dict[str, list[float]] = {name: [] for name in ("train_first", "train_again", "sample_first", "sample_again")}
    held = []
    for _ in range(config.switches):
        times["train_first"].append(timed(train))
        held.append(torch.cuda.memory_allocated() if has_cuda() else resident_bytes())
        times["train_again"].append(timed(train))
        times["sample_first"].append(timed(sample))
        times["sample_again"].append(timed(sample))
    seconds = {name: statistics.median(values[2:]) for name, values in times.items()}
    switch = seconds["train_first"] - seconds["train_again"] + seconds["sample_first"] - seconds["sample_again"]
    if here.is_main:
        out = {
            "preset": config.preset, "switches": config.switches, "switch_seconds": switch, **seconds,
            "slowest_sample_first": max(times["sample_first"][2:]), "memory_gib_early": held[2] / 2**30,
            "memory_gib_late": held[-1] / 2**30, "memory_growth_bytes": held[-1] - held[2], "graphs": sampler.graphs,
        }  # fmt: skip
        if has_cuda():
            out["reserved_gib"] = torch.cuda.memory_reserved() / 2**30
        print(json.dumps(out), flush=True)


def resident_bytes() -> int:
    """Of this process now, on Linux."""
    import resource

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchSwitch, "bench_switch", "Cost of a switch from training to sampling and back.")))
