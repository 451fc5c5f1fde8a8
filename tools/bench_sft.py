#!/usr/bin/env python
"""Training speed on real conversations, beside megatron-core as it comes. Prints one JSON object.

    python tools/bench_sft.py --train runs/tiny-seed1/data/sft_train.jsonl --tokenizer runs/tiny-seed1/data/tokenizer

Every contender takes whole training steps (clipping and update included) on the same conversations, with the loss on
their responses; tokens/s count their tokens, not padding. "ring" trains one pack of --context-length tokens a step.
megatron-core's local specification cannot pack: "mcore-stock" gets as many conversations a step as a pack holds, in random
order, padded to the longest of them; "mcore-sorted" those of the same pack, which the packing chose to be of like length.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ring.config.cli import parse
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:
    import torch

    from megatron_ring.data.packing import MicroBatch

# tokens, targets of one conversation; a target that does not count is -1
Conversation = tuple["torch.Tensor", "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured."""

    train: Path
    """Conversations, as for SFT."""
    tokenizer: Path
    """A folder or a file."""
    preset: str = "ring-tiny"
    """Model shape by name."""
    context_length: int = 512
    """Tokens of a pack."""
    steps: int = 20
    """Steps of a round, each with a pack of its own."""
    repeats: int = 5
    """Rounds, the contenders in turn."""
    seed: int = 0
    """Seed of the order."""


def main(config: Bench) -> None:
    prepare()
    import torch

    if TYPE_CHECKING:
        from tools import bench_train_ring as ring
        from tools import bench_train_rivals as rivals
    else:
        import bench_train_ring as ring
        import bench_train_rivals as rivals
    from megatron_ring.config.sft import SFTDataConfig
    from megatron_ring.corpus.conversations import load_datasets
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.parallel import context as parallel_context

    shape = get_preset(config.preset)
    context = parallel_context.initialize(ParallelConfig(), shape, config.seed)
    dtype = torch.bfloat16 if context.device.type == "cuda" else torch.float32
    tokenizer = RingTokenizer.load(config.tokenizer)
    given = SFTDataConfig(
        train=config.train, tokenizer=config.tokenizer, context_length=config.context_length, global_batch=1
    )
    data, _ = load_datasets(given, tokenizer, config.seed, config.context_length)
    packs = [data.batch(0, step)[0] for step in range(min(config.steps, data.steps_per_epoch))]
    sorted_steps = [conversations(pack) for pack in packs]
    shuffled = [conversation for step in sorted_steps for conversation in step]
    random.Random(config.seed).shuffle(shuffled)
    places = iter(shuffled)
    shuffled_steps = [[next(places) for _ in step] for step in sorted_steps]

    trained = ring.TrainedRing(ring.build_ring(shape, context, dtype, "native", "none"), context, [], "fp32")
    stock = rivals.build_mcore(False, shape, context, dtype, [], True, "none")
    assert isinstance(stock, rivals.ScheduledMcore)
    work: dict[str, tuple[Any, str, list[Any]]] = {
        "ring": (trained, "batches", [[pack] for pack in packs]),
        "mcore-stock": (stock, "inputs", [[rivals.McoreInputs(*padded(step))] for step in shuffled_steps]),
        "mcore-sorted": (stock, "inputs", [[rivals.McoreInputs(*padded(step))] for step in sorted_steps]),
    }
    tokens = sum(int(pack.token_mask.sum()) for pack in packs)
    seconds = timed_rounds(work, config.repeats)
    rates = {name: tokens / statistics.median(each) for name, each in seconds.items()}
    rivals_steps = {name: steps for name, (_, _, steps) in work.items() if name != "ring"}
    cells = {name: sum(each.counted.numel() for step in steps for each in step) for name, steps in rivals_steps.items()}
    print(json.dumps({
        "preset": config.preset, "threads": torch.get_num_threads(), "steps": len(packs), "conversations": len(shuffled),
        "tokens_a_step": tokens / len(packs), "loss_tokens_a_step": sum(int(p.loss_mask.sum()) for p in packs) / len(packs),
        "padding": {"ring": sum(p.tokens.numel() for p in packs) / tokens - 1}
        | {name: count / tokens - 1 for name, count in cells.items()},
        "tokens_per_second": rates,
        "step_ms": {name: statistics.median(each) / len(packs) * 1000 for name, each in seconds.items()},
        "spread": {name: (max(each) - min(each)) / statistics.median(each) for name, each in seconds.items()},
        "ring_over": {name: rates["ring"] / rate for name, rate in rates.items() if name != "ring"},
    }))  # fmt: skip


def timed_rounds(work: dict[str, tuple[Any, str, list[Any]]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each round of each contender, by name, in turn. `work`: a contender, the name of what it trains on, and
    that of each step."""
    if TYPE_CHECKING:
        from tools.bench_train_work import Clock
    else:
        from bench_train_work import Clock

    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_number in range(repeats + 1):
        for name, (contender, field, steps) in work.items():
            clock = Clock()
            clock.start()
            for batches in steps:
                setattr(contender, field, batches)
                contender.step(clock)
                clock.end("rest")
            if round_number:  # the first one warms up
                seconds[name].append(sum(clock.milliseconds().values()) / 1000)
        print(f"bench_sft: round {round_number} of {repeats}", file=sys.stderr, flush=True)
    return seconds


def conversations(pack: MicroBatch) -> list[Conversation]:
    """Those of a pack."""
    from megatron_ring.training.trainer import sequence_lengths

    lengths = sequence_lengths(pack)
    end = sum(lengths)
    targets = pack.targets.where(pack.loss_mask, -1)
    return list(zip(pack.tokens[:end].split(lengths), targets[:end].split(lengths), strict=True))


def padded(step: list[Conversation]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets int64 [S, longest]."""
    import torch

    from megatron_ring.parallel.device import current_device

    pad = torch.nn.utils.rnn.pad_sequence
    filled = [pad([each[i] for each in step], batch_first=True, padding_value=value) for i, value in ((0, 0), (1, -1))]
    device = current_device()
    return filled[0].to(device), filled[1].to(device)


if __name__ == "__main__":
    run_main(lambda: main(parse(Bench, "bench_sft.py", "Training speed on conversations beside megatron-core's.")))
