"""What bench_train.py measures: the hardware's ceilings, a contender's time and memory, and time by kind of kernel."""

from __future__ import annotations

import re
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
    from tools.bench_train_work import Clock, Contender
else:
    from bench_train_work import Clock, Contender

GIB = 1 << 30

# By name, the first that matches. A library's grouped product that is one plain product per expert counts as dense.
KERNELS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in {
    "NCCL": r"nccl|allreduce|all_reduce|all_gather|reduce_scatter|c10d::",
    "optimizer": r"adam|multi_tensor|multi_?tensor_apply|l2norm|lpnorm|foreach",
    "grouped GEMM": r"group(ed)?_?(gemm|mm|problem|product|swiglu)|GroupProblemShape|moe_gemm",
    "attention": r"sdpa|fmha|flash|attention|attn|mha_",
    "dense GEMM": r"gemm|nvjet|cutlass|xmma|cublas|gemv|splitk|aten::(addmm|mm|bmm|matmul|linear)\b|aten::addmm_",
    "softmax, cross-entropy": r"softmax|cross_?entropy|nll_loss|logsumexp|logprob|entropy|token_stat|logits",
    "norm": r"rms_?norm|layer_?norm|_norm_",
    "SwiGLU": r"silu|swiglu|glu|sigmoid",
    "rope, split": r"rope|rotary|split|CatArray|aten::cat|chunk",
    "permutation, gather": r"index|gather|scatter|permut|sort|radix|scan|cumsum|topk|embedding|moe|route|histogram|bincount",
    "copies, fill": r"memcpy|memset|fill|copy|zero_|aten::to\b|aten::zeros|aten::empty",
}.items()}  # fmt: skip


def kernel_class(name: str) -> str:
    """The class of a CUDA kernel, or on the CPU of a torch operation, by its name."""
    return next((kind for kind, pattern in KERNELS.items() if pattern.search(name)), "other")


def best_seconds(work: Any, repeats: int, calls: int) -> float:
    """The shortest time of one call, of `repeats` rounds of `calls` calls."""
    work()
    times = []
    for _ in range(repeats):
        clock = Clock()
        clock.start()
        for _ in range(calls):
            work()
        clock.end("work")
        times.append(clock.milliseconds()["work"] / calls / 1000)
    return min(times)


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measured now: a square matrix product (TFLOP/s), copying and reading memory (GB/s)."""
    cuda = device.type == "cuda"
    size, cells, calls = (8192, 1 << 30, 10) if cuda else (1024, 1 << 25, 3)
    factors = [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]
    product = best_seconds(lambda: torch.mm(*factors), 3, calls)
    memory = torch.ones(2, cells, device=device)
    copying = best_seconds(lambda: memory[1].copy_(memory[0]), 3, calls)
    reading = best_seconds(lambda: memory[0].sum(), 3, calls)
    moved = cells * 4 / 1e9
    return {
        "gemm_tflops": 2 * size**3 / product / 1e12,
        "copy_gb_per_second": 2 * moved / copying,
        "read_gb_per_second": moved / reading,
    }


def free_memory() -> None:
    """Give back what no one holds any more."""
    import gc

    gc.collect()
    torch.cuda.empty_cache()


def held_gib() -> float:
    """Memory of live tensors on the device; 0 on the CPU."""
    return torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else 0.0


class Measurement:
    """One contender's rounds."""

    def __init__(self, contender: Contender, warmup: int) -> None:
        self.contender = contender
        self.rounds: list[dict[str, float]] = []
        self.host_seconds: list[float] = []
        self.loss = 0.0
        clock = Clock()
        for _ in range(warmup):
            clock.start()
            self.loss = float(contender.step(clock))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def round(self, steps: int) -> None:
        """Time so many steps."""
        clock = Clock()
        began = time.perf_counter()
        clock.start()
        for _ in range(steps):
            loss = self.contender.step(clock)
            clock.end("rest")
        passed = clock.milliseconds()
        self.host_seconds.append((time.perf_counter() - began) / steps)
        self.rounds.append({phase: value / steps for phase, value in passed.items()})
        self.loss = float(loss)

    def result(self) -> dict[str, Any]:
        """Milliseconds of a step and of its phases (median of the rounds), spread of the rounds, peak memory, last loss."""
        steps = [sum(each.values()) for each in self.rounds]
        median = statistics.median(steps)
        phases = sorted({phase for each in self.rounds for phase in each})
        peak = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None
        return {
            "step_ms": median,
            "spread": (max(steps) - min(steps)) / median,
            "phases_ms": {phase: statistics.median(each.get(phase, 0.0) for each in self.rounds) for phase in phases},
            "host_step_ms": statistics.median(self.host_seconds) * 1000,
            "peak_memory_gib": peak,
            "loss": self.loss,
        }


def add_rates(
    result: dict[str, Any], flops: float, tokens: int, least: float, ceiling: dict[str, float], processes: int
) -> None:
    """What the times mean: tokens/s of all processes together, TFLOP/s of each, shares of the ceilings."""
    seconds = result["step_ms"] / 1000
    tflops = flops / processes / seconds / 1e12
    result |= {
        "tokens_per_second": tokens / seconds,
        "tflops": tflops,
        "mfu": tflops / ceiling["gemm_tflops"],
        "of_ceiling": least / result["step_ms"],
    }


def speedups(found: dict[str, Any]) -> dict[str, float]:
    """Our rate over each other's."""
    rates = {name: result["tokens_per_second"] for name, result in found.items() if "error" not in result}
    return {name: rates["ring"] / rate for name, rate in rates.items() if name != "ring"}


def profile(contender: Contender, steps: int = 2) -> dict[str, Any]:
    """Milliseconds of a step by kind of kernel (on the CPU: of torch operation), and the largest of those of no kind."""
    from torch.profiler import ProfilerActivity

    cuda = torch.cuda.is_available()
    clock = Clock()
    clock.start()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            contender.step(clock)
        clock.milliseconds()
    by_class: dict[str, float] = {}
    other: list[tuple[float, int, str]] = []
    for event in profiler.key_averages():
        if getattr(event, "is_user_annotation", False) or (cuda and event.device_type != torch.autograd.DeviceType.CUDA):
            continue
        passed = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1000 / steps
        kind = kernel_class(event.key)
        by_class[kind] = by_class.get(kind, 0.0) + passed
        if kind == "other":
            other.append((passed, event.count // steps, event.key[:160]))
    other.sort(reverse=True)
    return {
        "kernels_ms": dict(sorted(by_class.items(), key=lambda item: -item[1])),
        "kernels_sum_ms": sum(by_class.values()),
        "other_largest": [{"ms": ms, "calls": calls, "name": name} for ms, calls, name in other[:15]],
    }
