"""Which part of the model a kernel of a decoding step belongs to, and what each part must read and multiply.

Products of torch's libraries have names that say nothing of whose they are: they are known by their neighbours, as a layer
launches its kernels in one order. Shared experts may run on a stream of their own beside the routed ones: a kernel's
neighbours are those of its stream. A graph takes any streams for its branches, and another stream in each layer. But all
branches end before a norm and begin behind one, so that norms bound the neighbours in every stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
    from megatron_ring.sampler.sampler import Sampler
    from tools.sampler_floor import Floor
else:
    from sampler_floor import Floor

NORMS = ("_rms_norm", "_combine_and_norm")
PARTS = ("experts", "shared experts", "router", "attention", "projections", "norms and RoPE", "head", "draw", "other")
# Kernels whose names tell, by how these begin.
KNOWN = {
    "_few_gate_up": "experts", "_few_down": "experts", "_gate_up": "experts", "_down": "experts", "_sort_slots": "experts",
    "_permute_": "experts", "_grouped_": "experts", "_wide": "experts", "_combine_and_norm": "experts",
    "_route_": "router", "_attend_part": "attention", "_join_parts": "attention", "_write_token": "attention",
    "_rms_norm": "norms and RoPE", "_rope_split": "norms and RoPE", "_swiglu": "shared experts",
    "_draw_": "draw", "_find_least": "draw",
}  # fmt: skip


class Kernel(NamedTuple):
    """A kernel as the profiler saw it: its name, microseconds of its start and of its length, and the stream it ran on."""

    name: str
    start: float
    length: float
    stream: int = 0


@dataclass(frozen=True)
class Part:
    """A part's share of a pass: microseconds and kernels, bytes it must read, FLOPs it must do."""

    microseconds: float
    kernels: float
    read: float = 0.0
    flops: float = 0.0


def known_part(name: str) -> str | None:
    return next((part for begin, part in KNOWN.items() if name.startswith(begin)), None)


def parts_of(names: Sequence[str]) -> list[str]:
    """The part of each kernel, of names in the order in which they ran on a stream."""
    known = [known_part(name) for name in names]
    after: list[str] = [""] * len(names)  # the next kernel whose name tells
    following = ""
    for i in range(len(names) - 1, -1, -1):
        after[i] = following
        following = names[i] if known[i] else following
    found: list[str] = []
    before = ""
    for name, part, then in zip(names, known, after, strict=True):
        # Of few tokens shared experts have the kernels of the routed ones, which come behind the sort.
        shared = name.startswith("_few_gate_up") and not before.startswith("_sort_slots")
        shared = shared or (name.startswith("_few_down") and found[-1:] == ["shared experts"])
        found.append("shared experts" if shared else part or _by_neighbours(name, before, then))
        before = name if part else before
    return found


def _by_neighbours(name: str, before: str, then: str) -> str:
    product = any(sign in name for sign in ("gemm", "nvjet", "cutlass", "splitK", "cublas", "gemv"))
    if not product:
        return "draw" if before.startswith("_draw") or then.startswith("_draw") else "other"
    if before.startswith(("_join_parts", "_attend_part")) or then.startswith(("_rope_split", "_attend_part")):
        return "projections"
    if then.startswith("_route_"):
        return "router"
    if then.startswith(("_draw_", "_find_least")):
        return "head"
    if before.startswith(("_route_", "_swiglu")) or then.startswith("_swiglu"):
        return "shared experts"
    return "other"


def by_part(kernels: Iterable[Kernel], passes: int) -> tuple[dict[str, tuple[float, float]], float]:
    """Of each part its microseconds and kernels in a pass; and microseconds of a pass in which no kernel ran on any stream.
    Parts that run beside each other count in full: their sum may exceed the pass."""
    ordered = sorted(kernels, key=lambda kernel: kernel.start)
    sums = {part: [0.0, 0.0] for part in PARTS}
    for stream in {kernel.stream for kernel in ordered}:
        seen = [kernel for kernel in ordered if kernel.stream == stream or kernel.name.startswith(NORMS)]
        for kernel, part in zip(seen, parts_of([kernel.name for kernel in seen]), strict=True):
            if kernel.stream == stream:
                sums[part][0] += kernel.length / passes
                sums[part][1] += 1 / passes
    busy_until, gaps = None, 0.0
    for kernel in ordered:
        if busy_until is not None and kernel.start > busy_until:
            gaps += kernel.start - busy_until
        busy_until = max(busy_until or 0.0, kernel.start + kernel.length)
    return {part: (length, count) for part, (length, count) in sums.items()}, gaps / passes


def least_by_part(sampler: Sampler, floor: Floor, rows: int, held: int) -> dict[str, tuple[float, float]]:
    """Bytes and FLOPs of each part in a pass of `rows` sequences with `held` tokens in all. One process."""
    shape, found = floor.shape, dict.fromkeys(PARTS, (0.0, 0.0))
    places = {
        ".shared_experts.": "shared experts", ".router.": "router", ".self_attention.": "projections",
        ".mlp.linear": "shared experts", "output_layer": "head",
    }  # fmt: skip
    for name, weight in sampler.model.named_parameters():
        part = next((part for sign, part in places.items() if sign in name), None)
        if part is not None and ".experts." not in name:
            read, flops = found[part]
            found[part] = read + weight.nbytes, flops + 2.0 * weight.numel() * rows
    layers = len(sampler.model.local_layers)
    experts = 6.0 * shape.hidden_size * shape.expert_width * shape.experts_per_token * rows * len(sampler.model.route_layers)
    found["experts"] = floor.chosen(rows) * floor.experts, experts
    attended = 4.0 * held * shape.num_attention_heads * shape.head_dim * layers
    found["attention"] = held * floor.token_bytes, attended
    return found


def table(rows: int, layers: int, parts: dict[str, Part], rates: dict[str, float], whole: float, gaps: float) -> str:
    """One line a part: microseconds of a layer and its floor, by reading and multiplying at a time and one after the other.

    `whole` and `gaps`: milliseconds of a pass, timed without the profiler, and microseconds in which no kernel ran. The sum
    of the parts may exceed the pass: kernels that run beside each other all count.
    """
    added = sum(part.microseconds for part in parts.values()) / 1000
    said = f"{gaps / 1000:.3f} ms of it between kernels; the parts, some beside others, add up to {added:.3f} ms"
    lines = [f"{rows} rows: {whole:.3f} ms a pass, {said}"]
    lines.append(f"{'us a layer':<16}{'time':>8}{'kernels':>9}{'floor':>8}{'sum':>8}{'of floor':>10}{'of sum':>8}")
    for name, part in parts.items():
        read, multiply = seconds(part, rates)
        least, both = max(read, multiply) * 1e6 / layers, (read + multiply) * 1e6 / layers
        time = part.microseconds / layers
        shares = f"{least / time:>10.0%}{both / time:>8.0%}" if time and least else ""
        lines.append(f"{name:<16}{time:>8.1f}{part.kernels / layers:>9.1f}{least:>8.1f}{both:>8.1f}{shares}")
    return "\n".join(lines)


def seconds(part: Part, rates: dict[str, float]) -> tuple[float, float]:
    """To read, and to multiply."""
    return part.read / rates["read_gb_per_second"] / 1e9, part.flops / rates["gemm_tflops"] / 1e12


def kernels_of(profile: Any) -> list[Kernel]:
    """Those that a torch profiler saw on the device."""
    import torch

    found = []
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset")):
            span = event.time_range
            found.append(Kernel(event.name, span.start, span.elapsed_us(), event.device_resource_id))
    return found
