#!/usr/bin/env python
"""The experts' grouped products one by one: torch's `grouped_mm` beside the persistent kernel in several tiles. Prints one
JSON object; for a Hopper GPU.

    python tools/bench_grouped.py --tokens 16384

Rows are spread over the experts as a router with random weights does it (normal logits). Rates count the rows there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import UserError, run_main

if TYPE_CHECKING:
    import torch

    from megatron_ring.model.kernels.grouped_triton import Tile


@dataclass(frozen=True, kw_only=True)
class BenchGrouped:
    """What is measured."""

    preset: str = "ring-lite"
    """Model shape by name."""
    tokens: int = 16384
    """Tokens, each sent to the shape's number of experts."""
    spread: float = 0.5
    """Standard deviation of the router's logits over experts that all tokens share; 0: even counts."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        require(self.tokens >= 1, f"--tokens is {self.tokens}, below 1")


def main(config: BenchGrouped) -> None:
    import torch
    import torch.nn.functional as F

    from megatron_ring.model.kernels import grouped_triton
    from megatron_ring.model.kernels.rows import sort_by_expert
    from megatron_ring.model.kernels.swiglu import swiglu_forward

    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9:
        raise UserError("bench_grouped: a Hopper GPU is wanted (compute capability 9.0)")
    shape, device = get_preset(config.preset), torch.device("cuda")
    torch.manual_seed(config.seed)
    logits = torch.randn(config.tokens, shape.num_experts, device=device)
    logits += config.spread * torch.randn(shape.num_experts, device=device)
    ends = sort_by_expert(logits.topk(shape.experts_per_token).indices, shape.num_experts).ends
    rows, hidden, width = config.tokens * shape.experts_per_token, shape.hidden_size, shape.expert_width

    def draw(*size: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*size, device=device) * scale).bfloat16()

    x, both, act = draw(rows, hidden), draw(rows, 2 * width), draw(rows, width)
    gate_up = draw(shape.num_experts, 2 * width, hidden, scale=0.02)
    down = draw(shape.num_experts, hidden, width, scale=0.02)
    weights = torch.rand(rows, device=device)
    by_first, by_second = 4.0 * rows * hidden * width, 2.0 * rows * hidden * width

    def torch_and_swiglu() -> torch.Tensor:
        return swiglu_forward(F.grouped_mm(x, gate_up.transpose(1, 2), offs=ends), weights)

    def torch_with(a: torch.Tensor, b: torch.Tensor) -> Callable[[], Any]:
        return lambda: F.grouped_mm(a, b, offs=ends)

    def ours(a: torch.Tensor, b: torch.Tensor, transposed: bool) -> Callable[[Tile], Any]:
        return lambda tile: grouped_triton.product(a, b, ends, transposed, tile)

    # name: FLOPs, torch's, ours
    products: dict[str, tuple[float, Callable[[], Any], Callable[[Tile], Any] | None]] = {
        "first": (by_first, torch_with(x, gate_up.transpose(1, 2)), ours(x, gate_up, True)),
        "first and SwiGLU": (by_first, torch_and_swiglu,
                             lambda tile: grouped_triton.product_and_swiglu(x, gate_up, ends, weights, tile)[1]),
        "second": (by_second, torch_with(act, down.transpose(1, 2)), ours(act, down, True)),
        "gradient of the second's input": (by_second, torch_with(x, down), ours(x, down, False)),
        "gradient of the first's input": (by_first, torch_with(both, gate_up), ours(both, gate_up, False)),
        "gradient of the second's weight": (by_second, torch_with(x.t(), act), None),
        "gradient of the first's weight": (by_first, torch_with(both.t(), x), None),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, (flops, theirs, kernel) in products.items():
        found[name] = {"grouped_mm": rate(theirs, flops)}
        for tile in tiles(name) if kernel is not None else []:
            assert kernel is not None
            label = f"{tile.rows}x{tile.columns}x{tile.depth}, {tile.stages} stages, {tile.warps} warps"
            label += ", flat" if tile.flatten else ""
            found[name][label] = compare(partial(kernel, tile), theirs, flops)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    out = {"rows": rows, "experts": shape.num_experts, "fewest": int(counts.min()), "most": int(counts.max())}
    print(json.dumps(out | {"device": torch.cuda.get_device_name(), "products": found}), flush=True)


def tiles(name: str) -> list[Tile]:
    """Those that fit a Hopper's shared memory and registers."""
    from megatron_ring.model.kernels.grouped_triton import Tile

    if name == "first and SwiGLU":
        return [Tile(128, 128, 64, stages, 8, flat) for stages in (3, 4) for flat in (True, False)]
    sizes = [(128, 256, 64, 3, 8), (128, 256, 64, 4, 8), (256, 128, 64, 3, 8), (128, 128, 64, 4, 8), (128, 128, 64, 3, 4)]
    return [Tile(*size, flat) for size in sizes for flat in (True, False)]


def rate(work: Callable[[], Any], flops: float) -> dict[str, float]:
    """The median of calls in a row."""
    from triton.testing import do_bench

    milliseconds = do_bench(work, warmup=50, rep=200, return_mode="median")
    return {"ms": milliseconds, "tflops": flops / milliseconds / 1e9}


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], flops: float) -> dict[str, Any]:
    """Our rate, and how far our result is from theirs; or why there is none."""
    try:
        found = ours()
        wanted = theirs()
        difference = ((found - wanted).float().norm() / wanted.float().norm()).item()
        return {**rate(ours, flops), "difference": difference}
    except Exception as error:  # a tile that is too large must not take the others with it
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchGrouped, "bench_grouped.py", "Grouped products, torch's and ours.")))
