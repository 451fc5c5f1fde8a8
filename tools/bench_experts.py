#!/usr/bin/env python
"""The experts' decoding kernels in several tiles: microseconds of both products of a layer, the tiles in use first, then the
best of those that were tried. Prints a JSON line for each number of tokens; for a Hopper GPU.

    python tools/bench_experts.py --tokens 128 1024
    python tools/bench_experts.py --tokens 128 1024 --weights fp8

Each token goes to experts that are drawn with equal chances. Tiles are tried one product after the other: those of the first
beside the second's tile in use, then those of the second beside the best first.
"""

from __future__ import annotations

import json
import math
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import UserError, run_main

if TYPE_CHECKING:
    import torch

    from megatron_ring.model.kernels.few_tokens_triton import Tile

SHARED = 227 * 1024  # bytes that a program can have
REGISTERS = 160  # 32-bit ones of a thread for sums, at most


@dataclass(frozen=True, kw_only=True)
class BenchExperts:
    """What is measured."""

    preset: str = "ring-lite"
    """Model shape by name."""
    tokens: tuple[int, ...] = (32, 128, 256, 512, 1024)
    """Tokens that decode together."""
    weights: Literal["bf16", "fp8"] = "bf16"
    """The experts' weights."""
    activations: Literal["bf16", "fp8"] = "bf16"
    """What weights in FP8 are multiplied with, see --sampling.activations."""
    only_used: bool = False
    """Time the tiles in use alone."""
    workers: int = max(1, min(24, (os.cpu_count() or 2) // 2))
    """Processes that compile."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        require(min(self.tokens, default=0) >= 1, f"--tokens {self.tokens}: give numbers of 1 or more")
        require(self.workers >= 1, f"--workers is {self.workers}, below 1")
        said = f"--activations {self.activations}: of --weights fp8, leave it at bf16"
        require(self.weights == "fp8" or self.activations == "bf16", said)


class Way(NamedTuple):
    """Rows of a program, and the tiles of the two products."""

    rows: int
    up: Tile
    down: Tile


def main(config: BenchExperts) -> None:
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9:
        raise UserError("bench_experts: a Hopper GPU is wanted (compute capability 9.0)")
    for tokens in config.tokens:
        layer = Layer(config, tokens)
        used = layer.used
        found = {used: layer.microseconds(used)}
        if not config.only_used:
            for second in (False, True):
                best = min(found, key=lambda way: found[way])
                others = candidates(best if second else used, second, layer.parts if layer.narrow else 0)
                ways = [way for way in others if way not in found]
                compile_all(config, tokens, ways)
                found |= {way: layer.microseconds(way) for way in ways}
        order = sorted(found, key=lambda way: found[way])
        said = {"tokens": tokens, "weights": config.weights, "activations": config.activations,
                "device": torch.cuda.get_device_name(),
                "read_us_at_4400_gb_s": layer.read / 4.4e6, "in use": [text(used), found[used]],
                "best": [[text(way), found[way]] for way in order[:8]], "tried": len(found)}  # fmt: skip
        print(json.dumps(said), flush=True)


def text(way: Way) -> str:
    up, down = ("x".join(map(str, tile[:2])) + f" {tile[2]} stages {tile[3]} warps" for tile in way[1:])
    return f"{way.rows} rows: {up}; {down}"


def candidates(base: Way, second: bool, parts: int) -> list[Way]:
    """Other tiles of one product, that fit shared memory and registers. `parts`: of an activation in FP8, 0 in bf16."""
    from megatron_ring.model.kernels.few_tokens_triton import MOST_FP8_ROWS, MOST_ROWS, Tile

    narrow = parts > 0
    most = 2 * MOST_FP8_ROWS if narrow else 2 * MOST_ROWS
    heights = [base.rows] if second else [rows for rows in (base.rows // 2, base.rows, base.rows * 2) if 16 <= rows <= most]
    depths = (128,) if narrow else (64, 128)
    found = []
    for rows, size, depth, stages, warps in product(heights, (64, 128, 256), depths, (2, 3, 4, 5), (4, 8)):
        if narrow and second:
            depth = base.up.rows
        matrices, width = (1 if second else 2), (1 if narrow else 2)
        fits = stages * depth * width * (matrices * size + max(1, parts) * rows) <= SHARED
        sums = matrices * size * rows * (2 if narrow else 1) / (32 * warps)  # in FP8 a product's own, and the totals
        if fits and sums <= REGISTERS:
            tile = Tile(size, depth, stages, warps)
            if second:
                found.append(base._replace(down=tile))
            else:
                down = base.down._replace(columns=size) if narrow else base.down
                found.append(Way(rows, tile, down))
    return list(dict.fromkeys(found))


class Layer:
    """Experts with random weights, and tokens that are sorted."""

    def __init__(self, config: BenchExperts, tokens: int) -> None:
        import torch

        from megatron_ring.model.kernels import few_fp8_triton
        from megatron_ring.model.kernels import few_tokens_triton as few
        from megatron_ring.model.kernels.fp8 import Fp8Matrix

        shape, device = get_preset(config.preset), torch.device("cuda")
        torch.manual_seed(config.seed)
        self.k, self.experts, self.narrow = shape.experts_per_token, shape.num_experts, config.weights == "fp8"
        hidden, width = shape.hidden_size, shape.expert_width
        self.parts = 1 if config.activations == "fp8" else 2
        weights = [torch.randn(self.experts, *size, device=device, dtype=torch.bfloat16) * 0.02
                   for size in ((2 * width, hidden), (hidden, width))]  # fmt: skip
        matrices: Any = [Fp8Matrix.of(weight, self.parts) for weight in weights] if self.narrow else weights
        self.gate_up, self.down = matrices
        self.x = torch.randn(tokens, hidden, device=device, dtype=torch.bfloat16)
        self.chosen = torch.rand(tokens, self.experts, device=device).topk(self.k).indices
        self.weights = torch.rand(tokens, self.k, device=device)
        self.split = few_fp8_triton.room_for(self.x, self.parts) if self.narrow else None
        self.mean = tokens * self.k / self.experts
        some = int((torch.bincount(self.chosen.flatten(), minlength=self.experts) > 0).sum())
        self.read = sum(weight.nbytes for weight in (self.gate_up, self.down)) * some / self.experts
        most = few.MOST_FP8_ROWS if self.narrow else few.MOST_ROWS
        rows, _ = few.program_rows(self.mean, most, self.narrow)
        self.used = Way(
            rows,
            *few.usual_tiles(rows, self.experts, hidden, width, self.parts if self.narrow else 0, 1 if self.narrow else 2),
        )

    def run(self, way: Way) -> torch.Tensor:
        from megatron_ring.model.kernels import few_fp8_triton, few_plain_triton
        from megatron_ring.model.kernels.slots_triton import sort_slots

        slots = sort_slots(self.chosen, self.experts, None, self.split)
        beside = math.ceil(1.5 * self.mean / way.rows)
        given = (self.weights, slots, self.gate_up, self.down, way.rows, beside, way.up, way.down)
        if self.split is not None:
            return few_fp8_triton.products(self.split, *given)
        return few_plain_triton.products(self.x, *given)

    def microseconds(self, way: Way) -> float:
        """The median over replays of a graph; infinity for what the device has no room for."""
        import torch
        from triton.testing import do_bench_cudagraph

        from megatron_ring.model.kernels.dependent import dependent_launches

        try:
            with dependent_launches():
                self.run(way)
                torch.cuda.synchronize()
                return round(1e3 * do_bench_cudagraph(lambda: self.run(way), rep=15, return_mode="median"), 1)
        except Exception:  # a tile that is too large must not take the others with it
            return float("inf")


def compile_all(config: BenchExperts, tokens: int, ways: list[Way]) -> None:
    """Into Triton's cache, side by side."""
    parts = [ways[start :: config.workers] for start in range(config.workers)]
    with ProcessPoolExecutor(config.workers, get_context("spawn")) as pool:
        list(pool.map(compile_some, [config] * len(parts), [tokens] * len(parts), parts))


def compile_some(config: BenchExperts, tokens: int, ways: list[Way]) -> None:
    if ways:
        from megatron_ring.model.kernels.dependent import dependent_launches

        layer = Layer(config, tokens)
        for way in ways:
            try:
                with dependent_launches():
                    layer.run(way)
            except Exception:  # told again by the one that measures
                continue


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchExperts, "bench_experts.py", "The experts' decoding kernels in several tiles.")))
