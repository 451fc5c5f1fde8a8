#!/usr/bin/env python
"""The kernels of --exact beside the usual ones, on one GPU: time, and whether a row's bits depend on the number of rows.
Prints one JSON object.

    python tools/bench_exact.py --preset ring-lite
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare

Work = Callable[[Any], Any]  # with one of the weights
CACHE = 200 << 20  # bytes of weights that calls go through in turn, so that none is found in the GPU's cache


@dataclass(frozen=True, kw_only=True)
class BenchExact:
    """What is measured, in bf16: one layer's products and attention and the head's product, for decoding and training."""

    preset: str = "ring-lite"
    """Model shape."""
    decode_rows: int = 128
    """Sequences that decode together."""
    train_rows: int = 16_384
    """Tokens of a training forward pass."""
    context_length: int = 1024
    """Positions of each sequence, decoding and in training."""
    parts: tuple[str, ...] = ("products", "experts", "attention", "forward")
    """Some of products, experts, attention, forward (a training forward pass of --layers layers and the head)."""
    layers: int = 4
    """Layers of the forward pass."""
    tiles: bool = False
    """Time every tile, not only the one that is chosen (products: rows, columns and depth; attention: rows, warps and
    stages)."""

    def __post_init__(self) -> None:
        for name in ("decode_rows", "train_rows", "context_length", "layers"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} is {getattr(self, name)}, below 1")
        require(self.train_rows >= self.context_length, "--train-rows: fewer than --context-length")
        known = {"products", "experts", "attention", "forward"}
        require(
            set(self.parts) <= known, f"--parts: {', '.join(sorted(set(self.parts) - known))} is none of {sorted(known)}"
        )


def main(config: BenchExact) -> None:
    prepare()
    import torch

    from megatron_ring.parallel.device import has_cuda

    require(has_cuda(), "bench_exact: no CUDA device; the kernels of --exact have no other")
    torch.manual_seed(0)
    shape = get_preset(config.preset)
    out: dict[str, Any] = {"preset": config.preset, "device": torch.cuda.get_device_name()}
    parts = {"products": _products, "experts": _experts, "attention": _attention, "forward": _forward}
    with torch.no_grad():
        for name in config.parts:
            out[name] = parts[name](config, shape)
            torch.cuda.empty_cache()
    print(json.dumps(out), flush=True)


def _draw(*size: int) -> Any:
    import torch

    return torch.randn(size, device="cuda", dtype=torch.bfloat16)


def _products(config: BenchExact, shape: ModelConfig) -> list[dict[str, Any]]:
    import torch

    from megatron_ring.model.kernels import exact_mm_triton as exact

    hidden, heads = shape.hidden_size, shape.num_attention_heads * shape.head_dim
    sizes = {
        "qkv": (shape.qkv_rows, hidden), "proj": (hidden, heads), "shared up": (2 * shape.shared_width, hidden),
        "shared down": (hidden, shape.shared_width), "router": (shape.num_experts, hidden),
        "head": (shape.vocab_size, hidden),
    }  # fmt: skip
    found = []
    for name, (columns, depth) in sizes.items():
        kind = torch.float32 if name == "router" else None
        copies = max(1, min(16, CACHE // (2 * columns * depth)))
        weights = [_draw(columns, depth) for _ in range(copies)]
        most = min(config.train_rows, 2048) if name == "head" else config.train_rows
        x = _draw(most, depth)
        whole = exact.exact_mm(x, weights[0], out_dtype=kind)
        for rows in (config.decode_rows, most):

            def ours(weight: Any, rows: int = rows, tile: Any = None, kind: Any = kind, x: Any = x) -> Any:
                return exact.exact_mm(x[:rows], weight, out_dtype=kind, tile=tile)

            def usual(weight: Any, rows: int = rows, kind: Any = kind, x: Any = x) -> Any:
                if kind is not None:
                    return torch.mm(x[:rows], weight.t(), out_dtype=kind)
                return torch.mm(x[:rows], weight.t())

            tile = exact.tile_for(rows, columns, 1, whole.itemsize)
            row = _row(name, rows, ours, usual, weights, 2.0 * rows * columns * depth, 2 * columns * depth)
            row["bits_equal"] = torch.equal(ours(weights[0]), whole[:rows])
            row["tile"] = list(tile)
            if config.tiles:
                row["tiles_us"] = {
                    "x".join(map(str, t[:3])): _microseconds([partial(ours, weight, tile=t) for weight in weights])
                    for t in exact.TILES
                    if exact.fits(t, whole.itemsize)
                }
            found.append(row)
        del weights, x, whole
    return found


def _experts(config: BenchExact, shape: ModelConfig) -> list[dict[str, Any]]:
    import torch
    import torch.nn.functional as F

    from megatron_ring.model.kernels import exact_mm_triton as exact

    experts, found = shape.num_experts, []
    for name, columns, depth in (
        ("experts up", 2 * shape.expert_width, shape.hidden_size),
        ("experts down", shape.hidden_size, shape.expert_width),
    ):
        weights = [_draw(experts, columns, depth)]
        for tokens in (config.decode_rows, config.train_rows):
            rows = tokens * shape.experts_per_token
            places = torch.randint(experts, (rows,), device="cuda").bincount(minlength=experts)  # uneven, as routers are
            ends = places.cumsum(0).int()
            x = _draw(rows, depth)

            def ours(weight: Any, tile: Any = None, x: Any = x, ends: Any = ends) -> Any:
                return exact.exact_grouped_mm(x, weight, ends, tile=tile)

            def usual(weight: Any, x: Any = x, ends: Any = ends) -> Any:
                return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)

            row = _row(name, rows, ours, usual, weights, 2.0 * rows * columns * depth, weights[0].nbytes)
            grouped, starts = ours(weights[0]), [0, *ends.tolist()]
            row["bits_equal"] = all(
                torch.equal(exact.exact_mm(x[a:b], weights[0][e]), grouped[a:b]) for e, (a, b) in enumerate(pairwise(starts))
            )
            row["tile"] = list(exact.tile_for(rows, columns, experts, x.itemsize))
            if config.tiles:
                row["tiles_us"] = {
                    "x".join(map(str, t[:3])): _microseconds([partial(ours, weight, tile=t) for weight in weights])
                    for t in exact.TILES
                }
            found.append(row)
    return found


def _attention(config: BenchExact, shape: ModelConfig) -> list[dict[str, Any]]:
    import torch

    from megatron_ring.model.attention_kernels import PackedAttention
    from megatron_ring.model.exact_attention import Asked, attend_packed, attend_paged
    from megatron_ring.model.kernels.exact_attention_triton import Rows
    from megatron_ring.sampler.decode_triton import attend_decode

    heads, groups, d, length = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim, config.context_length
    group, page = heads // groups, 32
    lengths = [length] * (config.train_rows // length)
    q, k, v = (_draw(sum(lengths), n, d) for n in (heads, groups, groups))
    usual = PackedAttention(lengths, q.device, q.dtype, d)
    asked = Asked.of_chunks(lengths, lengths, group, q.device)
    flops = 2.0 * heads * d * sum(n * n for n in lengths)
    packed = _row(
        "packed", sum(lengths), lambda _: attend_packed(asked, usual, q, k, v), lambda _: usual(q, k, v), [None], flops, 0
    )
    packed["usual_kernel"] = usual.kernel
    if config.tiles:
        packed["rows_us"] = {}
        for way in (Rows(128, 8, 2), Rows(128, 8, 3), Rows(64, 4, 2), Rows(64, 4, 3), Rows(64, 4, 4)):
            so = Asked.of_chunks(lengths, lengths, group, q.device, way)
            us = _microseconds([partial(attend_packed, so, usual, q, k, v)])
            packed["rows_us"]["x".join(map(str, way))] = us
    whole = attend_packed(asked, usual, q, k, v)

    rows, columns = config.decode_rows, -(-length // page)
    table = torch.randperm(rows * columns, device="cuda").view(rows, columns).int()
    keys, values = (_draw(rows * columns, page, groups, d) for _ in "kv")
    where = torch.arange(columns * page, device="cuda")
    for n in range(min(rows, len(lengths))):  # the packed sequences again
        pages, inside = table[n, where // page].long(), where % page
        for pages_of, packed_of in ((keys, k), (values, v)):
            pages_of[pages[:length], inside[:length]] = packed_of[n * length : (n + 1) * length]
    last = _draw(rows, heads, d)
    same = min(rows, len(lengths))
    ends = torch.arange(1, same + 1, device="cuda") * length - 1
    last[:same] = q[ends]
    counts = torch.full((rows,), length, device="cuda")
    decoding = Asked.of_decoding(counts, group)
    moved = 2 * rows * length * groups * d * 2
    decode = _row(
        "decode", rows, lambda _: attend_paged(decoding, last, keys, values, table),
        lambda _: attend_decode(last, keys, values, table, counts, length), [None], 0.0, moved,
    )  # fmt: skip
    decode["bits_equal"] = torch.equal(attend_paged(decoding, last, keys, values, table)[:same], whole[ends])
    return [packed, decode]


def _forward(config: BenchExact, shape: ModelConfig) -> list[dict[str, Any]]:
    if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
        from tools.bench_exact_forward import forward
    else:
        from bench_exact_forward import forward

    return forward(shape, config.layers, config.context_length, config.train_rows)


def _row(
    name: str,
    rows: int,
    ours: Work,
    usual: Work,
    weights: list[Any],
    flops: float,
    moved: int,
) -> dict[str, Any]:
    """Both timed on the same weights; rates by the operations or the bytes of weights or keys."""
    times = {
        which: _microseconds([partial(work, weight) for weight in weights])
        for which, work in (("exact", ours), ("usual", usual))
    }
    row: dict[str, Any] = {"name": name, "rows": rows, **{f"{which}_us": us for which, us in times.items()}}
    row["exact_over_usual"] = times["exact"] / times["usual"]
    for which, us in times.items():
        row[f"{which}_tflops"] = flops / us / 1e6
        row[f"{which}_gb_per_second"] = moved / us / 1e3
    return row


def _microseconds(calls: list[Callable[[], Any]], rounds: int = 7) -> float:
    """Median time of a call within a CUDA graph of all of them: what the GPU takes, not the host."""
    import torch

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    repeats = max(1, 8 // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / (repeats * len(calls)))
    return sorted(times)[rounds // 2]


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchExact, "bench_exact", "The kernels of --exact beside the usual ones.")))
