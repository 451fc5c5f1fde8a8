#!/usr/bin/env python
"""What the responses of a step cost on the host between sampling and training: memory, and time on the way. One JSON object.

    torchrun --nproc-per-node 8 tools/bench_rollouts.py --responses 8192 --tokens 12800 --routes 168

Responses are made up and lie where they would have been sampled. As in an RL step ranks tell each other lengths
(`tell_seconds`), then micro-batches are dealt and tokens travel (`deal_seconds`). `exchange_seconds` is a floor: as many
bytes exchanged without a record around them. Times are of the slowest process, memory of the fullest, per token of the step.
Needs no GPU.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:
    from megatron_ring.parallel.context import ParallelContext
    from megatron_ring.rollout.records import Rollout
    from megatron_ring.sampler.completion import Completion


@dataclass(frozen=True, kw_only=True)
class BenchRollouts:
    """A step's responses, all of one length."""

    responses: int = 512
    """Of all ranks: prompts times samples."""
    samples: int = 16
    """Responses to each prompt; one replica samples them."""
    tokens: int = 8192
    """Of each response."""
    prompt_tokens: int = 256
    """Of each prompt."""
    routes: int = 0
    """Bytes of experts for each token, where they are replayed: MoE layers of a pipeline stage times experts a token."""
    micro_batch_tokens: int = 24_576
    """Capacity of the micro-batches that they are dealt in."""
    repeats: int = 3
    """Timed runs; medians count."""
    compare: Literal["none", "lists"] = "none"
    """Beside it: the same responses as lists of Python numbers, pickled and gathered by every rank."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name in ("responses", "samples", "tokens", "prompt_tokens", "repeats"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} is {getattr(self, name)}, below 1")
        require(self.routes >= 0, f"--routes is {self.routes}, below 0")
        longest = self.prompt_tokens + self.tokens
        said = f"--micro-batch-tokens {self.micro_batch_tokens:,}: prompt and response of {longest:,} do not fit, raise it"
        require(longest <= self.micro_batch_tokens, said)


def main(config: BenchRollouts) -> None:
    prepare()
    import torch

    from megatron_ring.parallel import context

    torch.set_num_threads(1)
    here = context.initialize(config.parallel, RING_TINY, 0)
    out: dict[str, Any] = {
        "processes": here.world_size, "data_ranks": here.data_size, "responses": config.responses,
        "tokens": config.responses * config.tokens, "routes": config.routes,
    }  # fmt: skip
    out |= measure(config, here)
    if config.compare == "lists":
        out["lists"] = gathered_lists(config, here)
    if here.is_main:
        print(json.dumps(out), flush=True)


def measure(config: BenchRollouts, here: ParallelContext) -> dict[str, Any]:
    """The product's own way."""
    from megatron_ring.parallel import collectives
    from megatron_ring.parallel.host_bytes import exchange_over_data
    from megatron_ring.rollout.sharding import deal_rollouts
    from megatron_ring.sampler.columns import TOKEN_BYTES

    total = config.responses * config.tokens
    made_up(replace(config, responses=here.data_size, samples=1), here)  # what the first use of torch takes is not theirs
    with Memory() as memory:
        rollouts = made_up(config, here)
    own = [rollout for rollout in rollouts if rollout.holder == here.data_rank]
    held, sampled = memory.held, len(own) * config.tokens
    lengths = [config.prompt_tokens + config.tokens] * len(rollouts)

    def deal() -> list[Completion]:
        return deal_rollouts(rollouts, lengths, config.micro_batch_tokens, 0, here)[2]

    tell = timed(config, lambda: collectives.gather_over_data([rollout.completion.without_tokens() for rollout in own]))
    with Memory() as memory:
        completions = deal()
    dealt = timed(config, deal)
    taken = [i for i, completion in enumerate(completions) if completion.tokens]
    came = sum(rollouts[i].holder != here.data_rank for i in taken) * config.tokens
    width = TOKEN_BYTES + config.routes
    size = came * width // max(1, here.data_size - 1)  # as much from each of the others
    sizes = [0 if rank == here.data_rank else size for rank in range(here.data_size)]
    data = bytearray(sum(sizes))
    wire = timed(config, lambda: exchange_over_data(data, sizes)) if here.data_size > 1 else 0.0
    return worst(
        {
            "held_bytes_per_own_token": held / max(1, sampled), "held_bytes_per_token": held / total,
            "peak_bytes_per_token": (held + memory.peak) / total, "tell_seconds": tell, "deal_seconds": dealt,
            "deal_ns_per_token": dealt / total * 1e9, "received_gb": came * width / 1e9, "exchange_seconds": wire,
        }
    )  # fmt: skip


def gathered_lists(config: BenchRollouts, here: ParallelContext) -> dict[str, float]:
    """Every response on every rank, as Python's own numbers: tokens, log-probs and entropies."""
    from megatron_ring.parallel import collectives

    sampled = [rollout.completion for rollout in made_up(config, here) if rollout.holder == here.data_rank]
    total = config.responses * config.tokens
    with Memory() as memory:
        own = [(list(one.tokens), list(one.logprobs), list(one.entropies), one.routes) for one in sampled]
        collectives.barrier()
        began = time.perf_counter()
        everyone = collectives.gather_over_data(own)
        seconds = time.perf_counter() - began
        del own
    assert sum(len(part) for part in everyone) == config.responses
    return worst(
        {
            "held_bytes_per_token": memory.held / total, "peak_bytes_per_token": memory.peak / total,
            "seconds": seconds, "ns_per_token": seconds / total * 1e9,
        }
    )  # fmt: skip


def made_up(config: BenchRollouts, here: ParallelContext) -> list[Rollout]:
    """All responses of a step as this rank has them after sampling."""
    import torch

    from megatron_ring.rollout.records import Rollout
    from megatron_ring.sampler.columns import DRAWN
    from megatron_ring.sampler.completion import Completion

    made, facts = [], Completion(versions=[[0, config.tokens]], finish_reason="stop")
    for place in range(config.responses):
        prompt, sample = divmod(place, config.samples)
        holder, completion = prompt % here.data_size, facts
        if sample == 0:
            prompt_tokens = [prompt % 1000 + i for i in range(config.prompt_tokens)]
        if holder == here.data_rank:
            columns: dict[str, Any] = {
                column.name: column.new(torch.randint(150_000, (config.tokens,)).tolist()) for column in DRAWN
            }
            routes = torch.randint(64, (config.tokens * config.routes,), dtype=torch.uint8).numpy().tobytes()
            completion = replace(facts, **columns, routes=routes)
        made.append(Rollout(prompt, sample, str(prompt), "math", prompt_tokens, place, completion, holder))
    return made


def timed(config: BenchRollouts, work: Callable[[], Any]) -> float:
    """Median seconds of a call that all ranks make together."""
    from megatron_ring.parallel import collectives

    seconds = []
    for _ in range(config.repeats):
        collectives.barrier()
        began = time.perf_counter()
        work()
        collectives.barrier()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def worst(figures: dict[str, float]) -> dict[str, float]:
    """The largest of all ranks, of each."""
    from megatron_ring.parallel import collectives

    everyone = collectives.gather_over_world(figures)
    return {name: max(one[name] for one in everyone) for name in figures}


class Memory:
    """What this process takes within: `held` bytes at its end more than before, `peak` at the fullest (Linux)."""

    def __enter__(self) -> Memory:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = self._read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = self._read("VmHWM") - self._before
        gc.collect()
        self.held = self._read("VmRSS") - self._before

    @staticmethod
    def _read(name: str) -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
        return int(line.split()[1]) * 1024


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchRollouts, "bench_rollouts", "Memory and time of a step's responses on the host.")))
