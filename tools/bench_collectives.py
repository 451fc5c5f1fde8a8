#!/usr/bin/env python
"""Bandwidth of the collectives that training uses, between all processes of one machine. Prints one JSON object.

    torchrun --nproc-per-node 8 tools/bench_collectives.py
    torchrun --nproc-per-node 2 tools/bench_collectives.py --mebibytes 1 16      # on CPUs, over gloo

"bus_gb_per_second" is what each link carries, by the definition of NVIDIA's nccl-tests: bytes of the whole buffer over the
time, times 2(n-1)/n for all-reduce and (n-1)/n for the others.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.errors import UserError, run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:
    import torch

    from tools.bench_train_measure import best_seconds
else:
    from bench_train_measure import best_seconds

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


@dataclass(frozen=True, kw_only=True)
class BenchCollectives:
    """What is measured: the shortest of some rounds, for each size."""

    mebibytes: tuple[int, ...] = (1, 16, 256, 1024)
    """Sizes of the whole buffer."""
    repeats: int = 3
    """Rounds."""
    calls: int = 10
    """Calls of a round."""

    def __post_init__(self) -> None:
        require(len(self.mebibytes) > 0, "--mebibytes: give a size")
        for name, values in (("mebibytes", self.mebibytes), ("repeats", (self.repeats,)), ("calls", (self.calls,))):
            require(min(values) >= 1, f"--{name} is {min(values)}, below 1")


def main(config: BenchCollectives) -> None:
    prepare()
    import torch

    from megatron_ring.parallel import context

    here = context.initialize(ParallelConfig(), RING_TINY, 0)
    world = here.world_size
    if world < 2:
        raise UserError("one process has nobody to talk to: start it with torchrun --nproc-per-node 2 or more")
    found: dict[str, dict[str, float]] = {}
    for size in config.mebibytes:
        numbers = (size << 20) // 4 // world * world
        whole, other = torch.zeros(2, numbers, device=here.device)
        part = torch.zeros(numbers // world, device=here.device)
        row = {}
        for kind in KINDS:
            seconds = best_seconds(partial(collective, kind, whole, other, part), config.repeats, config.calls)
            factor = (2 if kind == "all_reduce" else 1) * (world - 1) / world
            row[kind] = factor * numbers * 4 / seconds / 1e9
        found[f"{size} MiB"] = row
    if here.is_main:
        backend = torch.distributed.get_backend()
        print(json.dumps({"processes": world, "backend": backend, "bus_gb_per_second": found}), flush=True)
    context.shutdown()


def collective(kind: str, whole: torch.Tensor, other: torch.Tensor, part: torch.Tensor) -> None:
    """One call over all processes. `whole` and `other` are as long, `part` is a process's share."""
    import torch.distributed as dist

    if kind == "all_reduce":
        dist.all_reduce(whole)
    elif kind == "all_gather":
        dist.all_gather_into_tensor(whole, part)
    elif kind == "reduce_scatter":
        dist.reduce_scatter_tensor(part, whole)
    else:
        dist.all_to_all_single(other, whole)


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchCollectives, "bench_collectives.py", "Bandwidth of collectives on one machine.")))
