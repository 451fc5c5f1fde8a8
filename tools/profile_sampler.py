#!/usr/bin/env python
"""Where a decoding step's time goes: each part of the model beside what it must read and multiply, by the number of rows.
Random weights, one GPU. Prints tables on stderr, and one JSON object.

    python tools/profile_sampler.py --preset ring-lite --rows 32 128 256 512 1024 2048
    python tools/profile_sampler.py --preset ring-lite --rows 256 --sampling.weights fp8
    python tools/profile_sampler.py --preset ring-lite --no-overlaps --no-early

The time of a pass is taken without the profiler, of CUDA graphs as they run; what its parts take is taken with it. Each row
has a prompt of its own: keys and values that rows share (`--samples 16`) come from the L2 cache, which hides what attention
takes. The floor of a part is the longer of the times to read and to multiply, at rates that the same run measures; "sum" is
both times added.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.sampler.step import Step, StepShape
    from tools.sampler_flags import check_lengths, check_sampling
    from tools.sampler_floor import Floor
    from tools.sampler_profile import Part, by_part, kernels_of, least_by_part, table
else:
    from sampler_flags import check_lengths, check_sampling
    from sampler_floor import Floor
    from sampler_profile import Part, by_part, kernels_of, least_by_part, table


@dataclass(frozen=True, kw_only=True)
class ProfileSampler:
    """What is decoded."""

    preset: str = "ring-lite-slice-4"
    """Model shape."""
    layers: int | None = None
    """Only so many layers (default: all of the preset)."""
    rows: tuple[int, ...] = (32, 128, 256, 512, 1024, 2048)
    """Sequences decoded together; a profile of each."""
    prompt_tokens: int = 512
    """Tokens of a prompt."""
    samples: int = 1
    """Rows that share a prompt."""
    overlaps: bool = True
    """Run shared experts beside the routed ones, as the sampler does."""
    early: bool = True
    """Launch kernels while the ones before still run, as the sampler does."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        require(len(self.rows) > 0 and min(self.rows) >= 1, "--rows: give numbers of sequences, each 1 or more")
        require(self.prompt_tokens >= 2, f"--prompt-tokens is {self.prompt_tokens}, below 2")
        require(self.samples >= 1, f"--samples is {self.samples}, below 1")
        require(self.layers is None or self.layers >= 1, f"--layers is {self.layers}, below 1")
        require(self.sampling.max_batch == "auto", "--sampling.max-batch: give --rows")
        require(self.sampling.cuda_graphs, "--sampling.cuda-graphs: they are what is profiled")
        check_sampling(self.sampling)

    def shape(self) -> ModelConfig:
        shape = get_preset(self.preset)
        return replace(shape, num_layers=self.layers or shape.num_layers)


def main(config: ProfileSampler) -> None:
    prepare()
    import torch

    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.parallel.device import has_cuda
    from megatron_ring.sampler.decoding import HORIZON
    from megatron_ring.sampler.sampler import Sampler

    if TYPE_CHECKING:
        from tools.bench_train_measure import ceilings
    else:
        from bench_train_measure import ceilings

    shape = config.shape()
    check_lengths([(config.prompt_tokens, new_tokens(config, max(config.rows), HORIZON))], shape, config.sampling)
    require(has_cuda(), "profile_sampler: wants a CUDA device: what it profiles are CUDA graphs")
    here = context.initialize(ParallelConfig(), shape, 0)
    rates = ceilings(here.device, torch.bfloat16)
    model = build_model(shape, here, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    sampler = Sampler(model, here, sampling_of(config), -1)
    sampler.runner.overlaps, sampler.runner.early = config.overlaps, config.early
    found = [profiled(sampler, rows, config, rates) for rows in config.rows]
    head = {
        "preset": config.preset,
        "layers": shape.num_layers,
        "weights": config.sampling.weights,
        "activations": config.sampling.activations,
    }
    print(json.dumps({**head, "overlaps": config.overlaps, "early": config.early, **rates, "profiles": found}), flush=True)


def sampling_of(config: ProfileSampler) -> SamplingConfig:
    """All rows at once."""
    return replace(config.sampling, max_batch=max(config.rows))


def new_tokens(config: ProfileSampler, rows: int, horizon: int) -> int:
    """Of a response: none has ended when the last prompt begins, nor after `PASSES` steps more."""
    filled = -(-rows // config.samples) * config.prompt_tokens
    return (PASSES + -(-filled // config.sampling.prefill_tokens)) * horizon + 1


PASSES = 4  # steps of a run: the graph is captured in the first, one is timed, one profiled; in the last responses end


def profiled(sampler: Sampler, rows: int, config: ProfileSampler, rates: dict[str, float]) -> dict[str, Any]:
    """The profile of `rows` sequences: its table goes to stderr."""
    from megatron_ring.sampler.decoding import HORIZON

    probe = Probe(sampler, rows)
    try:
        sampler.generate(requests_of(sampler.model.ring_config.vocab_size, rows, config, new_tokens(config, rows, HORIZON)))
    finally:
        probe.remove()
    times, gaps = by_part(kernels_of(probe.profile), HORIZON)
    least = least_by_part(sampler, Floor.of(sampler, rates), rows, probe.held)
    parts = {name: Part(*times[name], *least[name]) for name in times}
    layers = len(sampler.model.local_layers)
    print(table(rows, layers, parts, rates, probe.milliseconds / HORIZON, gaps), file=sys.stderr, flush=True)
    return {
        "rows": rows, "tokens_held": probe.held, "pass_ms": probe.milliseconds / HORIZON, "gaps_us": gaps,
        "parts": {name: asdict(part) for name, part in parts.items()},
    }  # fmt: skip


class Probe:
    """Times the second step in which all rows decode, and profiles the third."""

    def __init__(self, sampler: Sampler, rows: int) -> None:
        self.rows, self.steps, self.milliseconds, self.held = rows, 0, 0.0, 0
        self.profile: Any = None
        self._runner = sampler.runner
        self._launch, self._runner.launch = self._runner.launch, self.launch  # type: ignore[method-assign]
        self._flew, self._runner.flies = self._runner.flies, False  # one step after another

    def remove(self) -> None:
        self._runner.launch = self._launch  # type: ignore[method-assign]
        self._runner.flies = self._flew

    def launch(self, step: Step, shape: StepShape, meanwhile: Any = None) -> Any:
        import torch

        if step.chunks or len(step.decoding) != self.rows:
            return self._launch(step, shape, meanwhile)
        self.steps += 1
        torch.cuda.synchronize()
        if self.steps == 3:
            self.held = sum(sequence.cached + 1 + step.horizon // 2 for sequence in step.decoding)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as self.profile:
                found = self._launch(step, shape, meanwhile)()
                torch.cuda.synchronize()
            return lambda: found
        began = time.perf_counter()
        found = self._launch(step, shape, meanwhile)()
        if self.steps == 2:
            self.milliseconds = 1000 * (time.perf_counter() - began)
        return lambda: found


def requests_of(vocabulary: int, rows: int, config: ProfileSampler, new: int) -> list[GenerationRequest]:
    import torch

    from megatron_ring.sampler.requests import GenerationRequest

    generator = torch.Generator().manual_seed(0)
    count = -(-rows // config.samples)
    prompts = torch.randint(vocabulary, (count, config.prompt_tokens), generator=generator).tolist()
    return [GenerationRequest(prompts[row // config.samples], row, new) for row in range(rows)]


if __name__ == "__main__":
    run_main(lambda: main(parse(ProfileSampler, "profile_sampler", "Where a decoding step's time goes.")))
