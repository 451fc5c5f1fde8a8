#!/usr/bin/env python
"""What a checkpoint costs: how long a step stalls for it, and the rate of each phase beside its floor. Prints JSON.

    python tools/bench_checkpoint.py --preset ring-lite-slice-4 --work DIR          # one GPU: some 40 GB
    python tools/bench_checkpoint.py --expert-width 16384 --steps 3 --work DIR      # a CPU: 1.2 GB
    torchrun --nproc-per-node 2 tools/bench_checkpoint.py --preset ring-tiny --work DIR --parallel.tensor 2

Trains on random tokens, saves in the background and waiting, and loads. `gb_per_second` has the phases: `stage` to host
memory, `write` from there, `save` (waiting, straight from the device), `check` and `load`. `floor_gb_per_second` has what
this machine does at most: copying to host memory, and plain writing and reading of as many bytes in the same folder, by one
thread and by as many as a checkpoint has files. `DIR` must have room for two checkpoints.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.config.stage import TrainedModelOptions
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:
    from megatron_ring.checkpoint.saving import CheckpointSaver
    from megatron_ring.data.packing import MicroBatch


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured."""

    work: Path
    """Folder to write into, on the disk to be measured."""
    preset: str = "ring-tiny"
    """Model shape by name."""
    layers: int | None = None
    """Only so many layers of it."""
    expert_width: int | None = None
    """Experts so wide: a small preset with much in it."""
    tokens: int = 4096
    """Tokens of a step on each data-parallel rank."""
    steps: int = 30
    """Steps timed without saving."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        require(self.tokens >= 64 and self.steps >= 3, "--tokens must be at least 64, --steps at least 3")


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of `work`, the device idle before and after."""
    from megatron_ring.parallel.device import synchronize

    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def main(config: Bench) -> None:
    prepare()
    from megatron_ring.checkpoint.loading import load_checkpoint
    from megatron_ring.checkpoint.manifest import damaged_files, read_manifest
    from megatron_ring.checkpoint.saving import CheckpointSaver
    from megatron_ring.run.stage import open_model
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    shape = get_preset(config.preset)
    shape = replace(
        shape, num_layers=config.layers or shape.num_layers, expert_width=config.expert_width or shape.expert_width
    )
    stage = open_model(TrainedModelOptions(parallel=config.parallel), shape)
    optimizer = OptimizerConfig(lr=1e-5)
    trainer = Trainer(stage.model, stage.context, optimizer)
    batch, loss = random_batch(shape.vocab_size, config.tokens), SFTLoss()

    def step() -> None:
        trainer.train_step([batch], loss, 1e-5)

    for _ in range(3):
        step()
    plain = [seconds(step) for _ in range(config.steps)]

    folder = config.work / "bench_checkpoints"
    if stage.context.is_main:
        shutil.rmtree(folder, ignore_errors=True)
    saver = CheckpointSaver(folder, stage.context, keep_last=1)
    stalls, during, until_whole = timed_saves(
        saver, lambda number: saver.save(number, stage.model, trainer.optimizer, {}), step
    )
    saver.save(4, stage.model, trainer.optimizer, {})
    writing = seconds(saver.wait)  # nothing beside it
    patient = CheckpointSaver(folder, stage.context, keep_last=1, background=False)
    waiting = seconds(lambda: patient.save(5, stage.model, trainer.optimizer, {}))
    manifest = read_manifest(folder / "step_5")
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    checking = seconds(lambda: damaged_files(folder / "step_5", manifest))
    loading = seconds(lambda: load_checkpoint(folder / "step_5", stage.model, stage.context, trainer.optimizer))
    copy_rate = host_copy_rate(stage.context.device)
    if stage.context.is_main:
        rates = {"stage": size / stage.context.world_size / min(stalls), "write": size / writing,
                 "save": size / waiting, "check": size / checking, "load": size / loading}  # fmt: skip
        files = len(list((folder / "step_5").glob("*.distcp")))
        floors = {"host_copy": copy_rate} | disk_rates(config.work / "bench_files", size, files)
        shutil.rmtree(folder)
        out = {
            "preset": config.preset, "layers": shape.num_layers, "processes": stage.context.world_size,
            "device": str(stage.context.device), "cores": len(os.sched_getaffinity(0)), "checkpoint_gb": size / 1e9,
            "files": files, "step_seconds": statistics.median(plain), "stall_seconds": stalls,
            "step_seconds_while_writing": statistics.median(during) if during else None, "steps_while_writing": len(during),
            "whole_after_seconds": until_whole, "save_seconds": waiting, "load_seconds": loading,
            "gb_per_second": {name: rate / 1e9 for name, rate in rates.items()}, "floor_gb_per_second": floors,
        }  # fmt: skip
        print(json.dumps(out), flush=True)


def random_batch(vocabulary: int, count: int) -> MicroBatch:
    """`count` random tokens as conversations of 1,024."""
    import torch

    from megatron_ring.data.packing import pack_sequences
    from megatron_ring.data.sequences import TokenSequence

    tokens = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    pieces = [tokens[start : start + 1024] for start in range(0, count, 1024)]
    return pack_sequences([TokenSequence(piece, [True] * len(piece)) for piece in pieces], count, 0)


def timed_saves(
    saver: CheckpointSaver, save: Callable[[int], Any], step: Callable[[], Any]
) -> tuple[list[float], list[float], list[float]]:
    """Seconds that each save stalls training, those of each step while it is written, and until it is whole."""
    from megatron_ring.parallel import collectives

    stalls, during, until_whole = [], [], []
    for number in range(1, 4):  # the first save takes host memory, later ones reuse it
        began = time.perf_counter()
        stalls.append(seconds(functools.partial(save, number)))
        while any(collectives.gather_over_world(saver.busy)):
            during.append(seconds(step))
        saver.wait()
        until_whole.append(time.perf_counter() - began)
    return stalls, during, until_whole


def host_copy_rate(device: Any) -> float:
    """GB/s of copying from the device to (page-locked) host memory, best of three."""
    import torch

    source = torch.ones(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty(source.shape, dtype=torch.uint8, pin_memory=source.is_cuda)
    target.copy_(source)
    return source.numel() / 1e9 / min(seconds(lambda: target.copy_(source, non_blocking=True)) for _ in range(3))


def disk_rates(folder: Path, size: int, files: int) -> dict[str, float]:
    """GB/s of plain writing (new files, fsync included) and reading of `size` bytes, by one thread and by several."""
    rates = {}
    for count in sorted({1, files}):
        folder.mkdir()
        paths = [folder / str(number) for number in range(count)]
        for name, work in (("write", functools.partial(plain_write, size=size // count)), ("read", plain_read)):
            began = time.perf_counter()
            with ThreadPoolExecutor(count) as threads:
                done = sum(threads.map(work, paths))
            rates[f"{name}_{count}"] = done / 1e9 / (time.perf_counter() - began)
        shutil.rmtree(folder)
    return rates


def plain_write(path: Path, size: int) -> int:
    """Bytes written."""
    block = memoryview(os.urandom(1 << 24))
    with open(path, "wb", buffering=0) as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
        os.fsync(file.fileno())
    return size


def plain_read(path: Path) -> int:
    """Bytes read."""
    block = bytearray(1 << 24)
    with open(path, "rb", buffering=0) as file:
        return sum(iter(lambda: file.readinto(block) or 0, 0))


if __name__ == "__main__":
    run_main(lambda: main(parse(Bench, "bench_checkpoint.py", "What a checkpoint costs.")))
