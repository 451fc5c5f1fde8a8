"""The parts of bench_node.py: which command, for how long at most, and what of its output is kept. Imports no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.planning.memory import GIB, OUTSIDE_TORCH, Work, plan_memory
from megatron_ring.planning.sizes import MOMENTS

ROOT = Path(__file__).resolve().parents[1]
Figures = dict[str, Any]
Recompute = Literal["none", "experts", "full"]
Moments = Literal["fp32", "bf16"]
USABLE = 0.95
"""Part of a GPU's memory that a plan may fill."""


@dataclass(frozen=True)
class Sizes:
    """How much each part does."""

    sequence: int = 8192
    """Tokens of a training sequence. A response has half of them at most."""
    micro_batches: int = 4
    """Of a training step, on each data-parallel rank."""
    samples: int = 16
    """Responses to a prompt."""
    prompts: int = 4
    """RL: prompts of a step for each GPU."""
    sampler_prompts: int = 8
    """Sampler: prompts of a data-parallel rank."""
    rounds: tuple[int, int, int] = (2, 3, 2)
    """bench_train.py: steps before the rounds, rounds, steps of a round."""
    mebibytes: tuple[int, ...] = (16, 256, 1024)
    """Of a collective's buffer."""

    @property
    def response(self) -> int:
        """Tokens of the longest response."""
        return self.sequence // 2


SMALL = Sizes(256, 2, 4, 1, 2, (1, 1, 1), (1,))
"""For a CPU."""


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        processes: 1: without torchrun.
        seconds: it is killed after them.
        command: a tool's file name or `-m MODULE`, and flags.
        needs: parts that must have ended well before.
        figures: what of its output goes into the results, from its last JSON line and its run directory.
        kill_at: it is killed (SIGKILL, all processes) when its run directory's metrics.jsonl has so many lines, then
            started again with the same command.
        layout, preset, recompute, moments: what a memory plan needs.
    """

    name: str
    processes: int
    seconds: int
    command: tuple[str, ...]
    needs: tuple[str, ...]
    figures: Callable[[Figures, Path | None], Figures]
    run_dir: Path | None = None
    kill_at: int | None = None
    layout: ParallelConfig | None = None
    preset: str = ""
    recompute: Recompute = "full"
    moments: Moments = "fp32"

    def arguments(self) -> list[str]:
        first, *rest = self.command
        start = [first, *rest] if first == "-m" else [str(ROOT / "tools" / first), *rest]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes)]
        return [sys.executable, *(launcher if self.processes > 1 else ()), *start]

    def metrics(self) -> list[Figures]:
        """Lines of its run directory so far; one that is being written is left out."""
        path = self.run_dir / "metrics.jsonl" if self.run_dir is not None else None
        if path is None or not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def trained(result: Figures, run: Path | None) -> Figures:
    ring = result["contenders"]["ring"]
    names = ("tflops", "mfu", "tokens_per_second", "step_ms", "peak_memory_gib", "spread")
    return {name: ring[name] for name in names} | {"gemm_tflops": result["ceilings"]["gemm_tflops"]}


def sampled(result: Figures, run: Path | None) -> Figures:
    names = ("tokens_per_second", "of_floor", "of_floor_until_90_percent_are_done", "host_share", "peak_memory_gib")
    return {name: result["ring"].get(name) for name in names} | {"read_gb_per_second": result["read_gb_per_second"]}


def stepped(result: Figures, run: Path | None) -> Figures:
    """Times and peaks of a run's last step."""
    assert run is not None
    steps = [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "time/step" in row]
    kept = ("throughput/", "time/", "memory/", "tokens/generated", "tokens/trained", "reward", "grad_norm", "loss")
    figures = {name: value for name, value in steps[-1].items() if name.startswith(kept)}
    return {"steps": len(steps)} | figures | saved(run / "checkpoints")


def saved(checkpoints: Path) -> Figures:
    """Size of the newest checkpoint, and how long its writing took: between the times of its first file and its last."""
    found = sorted(checkpoints.glob("step_*/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        return {}
    files = json.loads(found[-1].read_text())["files"]
    seconds = found[-1].stat().st_mtime - found[-1].with_name("random_rank_0.pt").stat().st_mtime
    return {"checkpoint_gb": sum(entry["bytes"] for entry in files.values()) / 1e9, "checkpoint_seconds": seconds}


def collected(result: Figures, run: Path | None) -> Figures:
    return {"backend": result["backend"], **result["bus_gb_per_second"]}


def looked(result: Figures, run: Path | None) -> Figures:
    return {}


def parts(
    gpus: int, preset: str, piece: str, sizes: Sizes, out: Path, memory: float, offload: bool | None, beside: bool
) -> list[Part]:
    """All parts, the most wanted first.

    Args:
        preset: the whole model.
        piece: a slice of it that fits one GPU, for scaling from one to `gpus`.
        memory: of a GPU (1e9 bytes). What is recomputed is the least that fits, by the plan; Adam's moments are in bf16
            where nothing else fits.
        offload, beside: RL: its optimizer waits on the host while responses are sampled (None: where training takes more
            than half of a GPU); a checkpoint is written while a step goes on.
    """
    found = [Part("doctor", 1, 180, ("doctor.py",), (), looked)]
    if gpus > 1:
        size = tuple(map(str, sizes.mebibytes))
        found.append(Part("collectives", gpus, 120, ("bench_collectives.py", "--mebibytes", *size), (), collected))
    layouts = [ParallelConfig(expert=gpus)]
    if gpus >= 2:
        layouts.append(ParallelConfig(tensor=2, expert=min(gpus, max(4, gpus // 2))))
    whole = [training(f"train-{label(layout)}", gpus, preset, layout, sizes, memory) for layout in layouts]
    sampler = [sampling(f"sample-{label(layout)}", gpus, preset, layout, sizes) for layout in layouts[:1]]
    found += [whole[0], *sampler, *run_parts(gpus, preset, layouts, sizes, out, memory, offload, beside), *whole[1:]]
    if gpus > 1:
        replicas = [ParallelConfig(), ParallelConfig(tensor=2)]
        found += [sampling(f"sample-{label(layout)}", gpus, preset, layout, sizes) for layout in replicas]
    # On one GPU its slice is the model itself, which was measured above.
    counts = [count for count in (1, 2, 4, 8, 16) if count <= gpus and (gpus > 1 or piece != preset)]
    for count in counts:
        for layout in [ParallelConfig()] if count == 1 else [ParallelConfig(), ParallelConfig(expert=count)]:
            found.append(training(f"scale-{count}-{label(layout)}", count, piece, layout, sizes, memory))
    shapes = {preset: get_preset(preset), piece: get_preset(piece)}
    for part in found:
        if part.layout is not None:
            part.layout.check(shapes[part.preset], part.processes)
    return found


def label(layout: ParallelConfig) -> str:
    named = [f"tp{layout.tensor}"] if layout.tensor > 1 else []
    return "-".join([*named, f"ep{layout.expert}" if layout.expert > 1 else "dp"])


def flags(layout: ParallelConfig, prefix: str) -> Iterator[str]:
    for name in ("tensor", "expert"):
        yield from (f"--{prefix}{name}", str(getattr(layout, name)))


def training(name: str, gpus: int, preset: str, layout: ParallelConfig, sizes: Sizes, memory: float) -> Part:
    recompute, moments = lightest(preset, layout, gpus, sizes, memory)
    warmup, repeats, steps = map(str, sizes.rounds)
    return Part(
        name, gpus, 300,
        ("bench_train.py", "--preset", preset, "--optimizer", "--sequence-length", str(sizes.sequence), "--sequences", "1",
         "--micro-batches", str(sizes.micro_batches), "--recompute", recompute, "--moments", moments, "--warmup", warmup,
         "--repeats", repeats,
         "--steps", steps, *flags(layout, "")),
        (), trained, layout=layout, preset=preset, recompute=recompute, moments=moments,
    )  # fmt: skip


def planned_gib(
    preset: str, layout: ParallelConfig, gpus: int, sizes: Sizes, recompute: Recompute, moments: Moments
) -> float:
    """What bench_train.py will have allocated at most, by the plan."""
    work = Work(
        tokens=sizes.sequence, micro_batches=sizes.micro_batches, recompute=recompute, moment_itemsize=MOMENTS[moments]
    )
    return plan_memory(get_preset(preset), layout, gpus, 2, work, 0).training_peak / GIB


def lightest(preset: str, layout: ParallelConfig, gpus: int, sizes: Sizes, memory: float) -> tuple[Recompute, Moments]:
    """The least recomputation with which a training step fits."""
    choices: tuple[tuple[Recompute, Moments], ...] = (("none", "fp32"), ("experts", "fp32"), ("full", "fp32"))
    limit = (USABLE * memory * 1e9 - OUTSIDE_TORCH) / GIB
    return next((each for each in choices if planned_gib(preset, layout, gpus, sizes, *each) <= limit), ("full", "bf16"))


def sampling(name: str, gpus: int, preset: str, layout: ParallelConfig, sizes: Sizes) -> Part:
    return Part(
        name, gpus, 300,
        ("bench_sampler.py", "--preset", preset, "--prompts", str(sizes.sampler_prompts * layout.tensor), "--samples",
         str(sizes.samples), "--prompt-tokens", "128", "--new-tokens", str(sizes.response), "--lengths", "long-tail",
         "--repeats", "1", *flags(layout, "parallel.")),
        (), sampled, layout=layout, preset=preset,
    )  # fmt: skip


def run_parts(
    gpus: int, preset: str, layouts: Sequence[ParallelConfig], sizes: Sizes, out: Path, memory: float, offload: bool | None,
    beside: bool,
) -> Iterator[Part]:  # fmt: skip
    """Two steps of SFT from random weights; three of C3PO from them; two more, killed on the way; one more in another
    layout. What a response says is noise, so rewards mean nothing: time, memory and continuing are what is looked at.
    A checkpoint is large. SFT's is of weights alone, as RL begins with no more. RL writes one at the end of each run and
    keeps the newest. With `beside` it also writes one while the third step goes on, from page-locked memory of its size."""
    data, sft, rl = out / "data", out / "sft", out / "rl"
    rows = ("--train", "1400", "--validation", "20", "--rl", "1400", "--heldout", "20")
    yield Part("data", 1, 120, ("make_tiny_data.py", "--out", str(data), *rows), (), looked)
    _, moments = lightest(preset, layouts[0], gpus, sizes, memory)
    common = ("--data.tokenizer", str(data / "tokenizer"), "--recompute", "full", "--optimizer.moments", moments)
    ranks = layouts[0].data(gpus)
    if offload is None:
        offload = planned_gib(preset, layouts[0], gpus, sizes, "full", moments) * GIB > memory * 1e9 / 2
    yield Part(
        "sft", gpus, 420,
        ("-m", "megatron_ring.sft", "--run-dir", str(sft), "--preset", preset,
         "--data.train", str(data / "sft_train.jsonl"), "--data.context-length", str(sizes.sequence),
         "--data.global-batch", str(ranks), "--epochs", "1", "--max-steps", "2", "--no-save-optimizer", *common,
         *flags(layouts[0], "parallel.")),
        ("data",), stepped, sft,
    )  # fmt: skip
    budget = gpus * sizes.prompts * sizes.samples * sizes.response  # every token
    # No alarm may end a run of noise.
    reinforced = (
        "-m", "megatron_ring.rl", "--run-dir", str(rl), "--init-from", str(sft / "checkpoints" / "step_2"), "--data.prompts",
        str(data / "rl_prompts.jsonl"), "--prompts-per-step", str(sizes.prompts * gpus), "--samples-per-prompt",
        str(sizes.samples), "--sampling.max-new-tokens", str(sizes.response), "--budget.tokens", str(budget),
        "--budget.scope", "global", "--save-every", "2" if beside else "100", "--keep-last", "1",
        "--alarms.action", "warn", *common, *(("--offload-optimizer",) if offload else ()),
        *(("--reference.place", "host") if moments == "bf16" else ()),
    )  # fmt: skip

    def steps(count: int, layout: ParallelConfig) -> tuple[str, ...]:
        return (*reinforced, "--steps", str(count), *flags(layout, "parallel."))

    yield Part("rl", gpus, 900, steps(3, layouts[0]), ("sft",), stepped, rl, layout=layouts[0], preset=preset)
    yield Part("rl-killed", gpus, 900, steps(5, layouts[0]), ("rl",), stepped, rl, kill_at=4)
    if len(layouts) > 1:
        yield Part(f"rl-{label(layouts[1])}", gpus, 600, steps(6, layouts[1]), ("rl-killed",), stepped, rl)
