#!/usr/bin/env python
"""What it costs to go from training to sampling and back, and whether anything stays behind. Prints one JSON object.

    python tools/bench_switch.py --preset ring-lite-slice-4 --switches 100

Each switch is a training step, then a call of the sampler. What it costs is what the first such call and the first such step
take beyond those that follow without a switch between them: the cache is taken, graphs are captured, memory changes hands.
`--offload-optimizer` adds both ways of the optimizer's state, and compares their rates with that of one large pinned copy.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring import parallel
from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import run_main

if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
    from tools.sampler_flags import check_lengths, check_sampling, named_as_here
else:
    from sampler_flags import check_lengths, check_sampling, named_as_here


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
    offload_optimizer: bool = False
    """Send the optimizer's state to host memory before sampling, and bring it back before training."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Adam's moments (bf16: CUDA)."""

    def __post_init__(self) -> None:
        for name in ("switches", "tokens", "requests", "prompt_tokens", "new_tokens"):
            least = 3 if name == "switches" else 1
            require(getattr(self, name) >= least, f"--{name.replace('_', '-')} is {getattr(self, name)}, below {least}")
        check_sampling(self.sampling)


@dataclass(frozen=True)
class Work:
    """What takes turns, and the trainer and the sampler that do it."""

    trainer: Any
    sampler: Any
    batches: list[Any]
    requests: list[Any]

    def train(self) -> None:
        from megatron_ring.training.losses import SFTLoss

        self.sampler.release()
        self.trainer.train_step(self.batches, SFTLoss(), 1e-6)

    def sample(self) -> None:
        with named_as_here():
            self.sampler.generate(self.requests)

    def bring_back(self) -> None:
        self.sampler.release()
        self.trainer.offload.bring_back()


def prepare(config: BenchSwitch) -> Work:
    """A model with random weights, a packed sequence of random tokens, and random prompts."""
    import torch

    from megatron_ring.data.packing import pack_sequences
    from megatron_ring.data.sequences import TokenSequence
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.parallel.device import has_cuda
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.training.trainer import Trainer

    shape = get_preset(config.preset)
    check_lengths([(config.prompt_tokens, config.new_tokens)], shape, config.sampling)
    said = f"--tokens {config.tokens:,} exceed the model's {shape.max_positions:,} positions"
    require(config.tokens <= shape.max_positions, said)
    here = context.initialize(config.parallel, shape, 0)
    model = build_model(shape, here, RouterLossConfig(1e-2, 1e-3), torch.bfloat16 if has_cuda() else torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    trainer = Trainer(model, here, OptimizerConfig(lr=1e-6, moments=config.moments))
    sampler = Sampler(model, here, config.sampling, eos_id=-1)
    generator = torch.Generator().manual_seed(here.data_rank)
    drawn = torch.randint(shape.vocab_size, (config.requests, config.prompt_tokens), generator=generator).tolist()
    requests = [GenerationRequest(prompt, seed, config.new_tokens) for seed, prompt in enumerate(drawn)]
    tokens = torch.randint(shape.vocab_size, (config.tokens,), generator=generator).tolist()
    batches = [pack_sequences([TokenSequence(tokens, [1] * config.tokens)], config.tokens, 0)]
    return Work(trainer, sampler, batches, requests)


def timed(work: Callable[[], object]) -> float:
    """Seconds until the device has done it."""
    from megatron_ring.parallel.device import synchronize

    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def main(config: BenchSwitch) -> None:
    parallel.prepare()
    import torch

    from megatron_ring.parallel.device import free_memory, has_cuda

    work = prepare(config)
    offload, held, room = work.trainer.offload, [], Room()
    names = ("train_first", "train_again", "send_away", "sample_first", "sample_again", "bring_back")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(config.switches):
        times["train_first"].append(timed(work.train))
        held.append(torch.cuda.memory_allocated() if has_cuda() else resident_bytes())
        times["train_again"].append(timed(work.train))
        if config.offload_optimizer:
            room.before = free_memory()
            times["send_away"].append(timed(offload.send_away))
            room.after, room.moved, room.freed = free_memory(), offload.host_bytes, offload.freed_bytes
        times["sample_first"].append(timed(work.sample))
        times["sample_again"].append(timed(work.sample))
        if config.offload_optimizer:
            times["bring_back"].append(timed(work.bring_back))
    seconds = {name: statistics.median(values[2:]) for name, values in times.items() if values}
    switch = seconds["train_first"] - seconds["train_again"] + seconds["sample_first"] - seconds["sample_again"]
    switch += seconds.get("send_away", 0.0) + seconds.get("bring_back", 0.0)
    if not work.trainer.context.is_main:
        return
    out: dict[str, Any] = {
        "preset": config.preset, "switches": config.switches, "switch_seconds": switch, **seconds,
        "slowest_sample_first": max(times["sample_first"][2:]), "memory_gib_early": held[2] / 2**30,
        "memory_gib_late": held[-1] / 2**30, "memory_growth_bytes": held[-1] - held[2], "graphs": work.sampler.graphs,
    }  # fmt: skip
    if has_cuda():
        out["reserved_gib"] = torch.cuda.memory_reserved() / 2**30
    if config.offload_optimizer:
        out["offload"] = room.figures(seconds, copy_rates(), times["send_away"][0])
    print(json.dumps(out), flush=True)


@dataclass
class Room:
    """What off-loading moved and freed (bytes), and what was free for the sampler before and after it (None on a CPU)."""

    before: int | None = None
    after: int | None = None
    moved: int = 0
    freed: int = 0

    def figures(self, seconds: dict[str, float], copy: dict[str, float], first: float) -> dict[str, float | None]:
        """`copy`: of `copy_rates`; `first`: seconds of the first time, with page-locking the host memory in it."""
        to_host, to_device = self.moved / 1e9 / seconds["send_away"], self.moved / 1e9 / seconds["bring_back"]
        return {
            "moved_gb": self.moved / 1e9, "freed_gb": self.freed / 1e9, "first_send_away": first,
            "to_host_gb_per_second": to_host, "copy_to_host_gb_per_second": copy["to_host"],
            "to_host_of_copy": to_host / copy["to_host"], "to_device_gb_per_second": to_device,
            "copy_to_device_gb_per_second": copy["to_device"], "to_device_of_copy": to_device / copy["to_device"],
            "free_gib_before": None if self.before is None else self.before / 2**30,
            "free_gib_after": None if self.after is None else self.after / 2**30,
        }  # fmt: skip


def copy_rates() -> dict[str, float]:
    """GB a second of one large copy to page-locked host memory and back, the median of ten; from host to host on a CPU."""
    import torch

    from megatron_ring.parallel.device import current_device, has_cuda

    device = torch.ones(1 << 30 if has_cuda() else 1 << 26, dtype=torch.uint8, device=current_device())
    host = torch.empty(device.shape, dtype=torch.uint8, pin_memory=has_cuda())
    found = {}
    for name, target, source in (("to_host", host, device), ("to_device", device, host)):
        took = [timed(partial(target.copy_, source, non_blocking=True)) for _ in range(11)]
        found[name] = host.numel() / 1e9 / statistics.median(took[1:])
    return found


def resident_bytes() -> int:
    """Of this process now, on Linux."""
    import resource

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchSwitch, "bench_switch", "Cost of a switch from training to sampling and back.")))
