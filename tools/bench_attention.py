#!/usr/bin/env python
"""Decoding attention alone: microseconds of a layer, its kernels in use and others, beside the time to read the contexts.
Prints a JSON line for each load; for a Hopper GPU.

    python tools/bench_attention.py --loads 64x1000 1024x250
    python tools/bench_attention.py --loads 64x1000 --uneven --only-used

No two sequences share a page, and layers take turns, so that the L2 cache does not hold what is read. Kernels that are tried
must give what those in use give.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from typing import TYPE_CHECKING, NamedTuple

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import UserError, run_main

if TYPE_CHECKING:
    import torch

LAYERS = 4  # that take turns
CLOSE = 0.02  # that a result in bf16 may be from another


@dataclass(frozen=True, kw_only=True)
class BenchAttention:
    """What is measured."""

    preset: str = "ring-lite"
    """Model shape by name."""
    loads: tuple[str, ...] = ("8x1000", "32x1700", "64x1000", "128x800", "256x600", "512x400", "1024x250")
    """ROWSxTOKENS: sequences that decode together, tokens of each."""
    uneven: bool = False
    """Sequences have a quarter to seven quarters of those tokens."""
    page_size: int = 32
    """Tokens of a page."""
    only_used: bool = False
    """Time the kernels in use alone."""
    workers: int = max(1, min(24, (os.cpu_count() or 2) // 2))
    """Processes that compile."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        require(len(self.loads) > 0, "--loads: give one or more")
        for load in self.loads:
            rows, _, tokens = load.partition("x")
            fits = rows.isdecimal() and tokens.isdecimal() and int(rows) >= 1 and int(tokens) >= 4
            require(fits, f"--loads: {load} is not ROWSxTOKENS with 1 row and 4 tokens or more")
        require(self.page_size >= 1, f"--page-size is {self.page_size}, below 1")
        require(self.workers >= 1, f"--workers is {self.workers}, below 1")

    def sizes(self) -> list[tuple[int, int]]:
        return [(int(rows), int(tokens)) for rows, tokens in (load.split("x") for load in self.loads)]


class Way(NamedTuple):
    """The constants of `decode_triton`."""

    split: int
    block: int
    stages: int
    few_stages: int
    warps: int


def main(config: BenchAttention) -> None:
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9:
        raise UserError("bench_attention: a Hopper GPU is wanted (compute capability 9.0)")
    ways = [used()] if config.only_used else candidates()
    if len(ways) > 1:
        compile_all(config, ways)
    for rows, tokens in config.sizes():
        load = Load(config, rows, tokens)
        wanted = load.run(ways[0], 0).float()
        found = {}
        for way in ways:
            close = (load.run(way, 0).float() - wanted).abs().max().item() <= CLOSE
            found[way] = load.microseconds(way) if close else float("inf")
        order = sorted(found, key=lambda way: found[way])
        said = {"rows": rows, "tokens": tokens, "uneven": config.uneven, "device": torch.cuda.get_device_name(),
                "read_us_at_4400_gb_s": round(load.read / 4.4e6, 1), "in use": [ways[0]._asdict(), found[ways[0]]],
                "best": [[way._asdict(), found[way]] for way in order[:5]], "tried": len(found)}  # fmt: skip
        print(json.dumps(said), flush=True)


def used() -> Way:
    from megatron_ring.sampler import decode_triton as it

    return Way(it.SPLIT, it.BLOCK, it.STAGES, it.FEW_STAGES, it.WARPS)


def candidates() -> list[Way]:
    """The kernels in use, and others."""
    sizes = product((256, 512), (16, 32), (2, 3, 5, 7), (2, 4))
    others = (Way(split, block, stages, stages, warps) for split, block, stages, warps in sizes)
    return list(dict.fromkeys([used(), *others]))


@contextmanager
def taken(way: Way) -> Iterator[None]:
    """Meanwhile attention has these constants."""
    from megatron_ring.sampler import decode_triton as it

    before = used()
    it.SPLIT, it.BLOCK, it.STAGES, it.FEW_STAGES, it.WARPS = way
    try:
        yield
    finally:
        it.SPLIT, it.BLOCK, it.STAGES, it.FEW_STAGES, it.WARPS = before


class Load:
    """Sequences with pages of their own, and queries, keys and values of their next token."""

    def __init__(self, config: BenchAttention, rows: int, tokens: int, layers: int = LAYERS) -> None:
        import torch

        from megatron_ring.model.rope import rope_tables
        from megatron_ring.sampler.decoding import span_of
        from megatron_ring.sampler.pages import pages_for

        shape, device, size = get_preset(config.preset), torch.device("cuda"), config.page_size
        generator = torch.Generator().manual_seed(config.seed)
        lengths = torch.full((rows,), tokens)
        if config.uneven:
            lengths = torch.randint(tokens // 4, 7 * tokens // 4, (rows,), generator=generator).clamp_min(1)
        self.longest, most = span_of(int(lengths.max())), pages_for(int(lengths.max()), size)
        pages = torch.randperm(rows * most, generator=generator).view(rows, most) + 1
        table = torch.zeros(rows, pages_for(self.longest, size), dtype=torch.int32)
        table[:, :most] = pages
        last = lengths - 1
        slots = pages.gather(1, (last // size)[:, None])[:, 0] * size + last % size
        self.table, self.lengths, self.slots = table.to(device), lengths.to(device), slots.to(device)
        heads, d = shape.num_key_value_heads, shape.head_dim
        torch.manual_seed(config.seed)
        draw = lambda *sizes: torch.randn(sizes, device=device, dtype=torch.bfloat16)  # noqa: E731
        pages_of_layer = (rows * most + 1, size, heads, d)
        self.caches = [(draw(*pages_of_layer), draw(*pages_of_layer)) for _ in range(layers)]
        self.qkv = draw(rows, heads, shape.num_attention_heads // heads + 2, d)
        self.rope = rope_tables(last.to(device), d, shape.rope_theta, shape.rope_scaling)
        self.read = int(lengths.sum()) * heads * d * 2 * self.qkv.itemsize

    def run(self, way: Way, layer: int) -> torch.Tensor:
        from megatron_ring.sampler import decode_triton

        keys, values = self.caches[layer]
        with taken(way):
            where = (self.table, self.lengths, self.longest)
            return decode_triton.turn_and_attend(self.qkv, self.rope, self.slots, keys, values, *where)

    def microseconds(self, way: Way) -> float:
        """Of a layer: the median over replays of a graph of all layers."""
        from triton.testing import do_bench_cudagraph

        from megatron_ring.model.kernels.dependent import dependent_launches

        def all_layers() -> None:
            for layer in range(len(self.caches)):
                self.run(way, layer)

        with dependent_launches():
            all_layers()
            median = do_bench_cudagraph(all_layers, rep=15, return_mode="median")
        return round(1e3 * median / len(self.caches), 1)


def compile_all(config: BenchAttention, ways: list[Way]) -> None:
    """Into Triton's cache, side by side."""
    parts = [ways[start :: config.workers] for start in range(config.workers)]
    with ProcessPoolExecutor(config.workers, get_context("spawn")) as pool:
        list(pool.map(compile_some, [config] * len(parts), parts))


def compile_some(config: BenchAttention, ways: list[Way]) -> None:
    from megatron_ring.model.kernels.dependent import dependent_launches

    loads = [Load(config, 2, tokens, layers=1) for tokens in (300, 1000)] if ways else []
    for way, load in product(ways, loads):
        with dependent_launches():
            load.run(way, 0)


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchAttention, "bench_attention.py", "Decoding attention alone, in several kernels.")))
