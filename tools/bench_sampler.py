#!/usr/bin/env python
"""Speed of the sampler on random weights: prefill and decoding, beside what memory's bandwidth and the matrix product's rate
allow, both measured in the same run. Prints one JSON object.

    python tools/bench_sampler.py --preset ring-lite --prompts 128 --samples 1 --prompt-tokens 512 --new-tokens 128
    python tools/bench_sampler.py --preset ring-lite --prompts 64 --samples 16 --new-tokens 8192 --lengths long-tail
    python tools/bench_sampler.py --preset ring-lite --prompts 128 --samples 1 --prompt-tokens 512 --mixed-settings

The floor of a decoding pass is the longer of two times: to read what it must (weights once, the embedding aside, and the
keys and values of its sequences), and to multiply what it must. Of prefill it is the products. A better sampler could not be
faster on this machine. "decode_bound_by_reading" is the share of the passes for which reading takes longer;
"decode_of_floor_sum" is against both times added: what kernels can reach that do not overlap them. "by_rows" has the time of
a pass of the last run and its floor, by the number of sequences that decode together.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    from tools.bench_sampler_compare import check_vllm, compare
    from tools.bench_sampler_figure import Turn, by_rows, draw
    from tools.bench_sampler_mix import decode, mixed
    from tools.bench_sampler_watch import Watch
    from tools.sampler_flags import check_figure, check_lengths, check_sampling, named_as_here
else:
    from bench_sampler_compare import check_vllm, compare
    from bench_sampler_figure import Turn, by_rows, draw
    from bench_sampler_mix import decode, mixed
    from bench_sampler_watch import Watch
    from sampler_flags import check_figure, check_lengths, check_sampling, named_as_here


@dataclass(frozen=True, kw_only=True)
class BenchSampler:
    """What is measured: every response has all its tokens, nothing stops one early."""

    preset: str = "ring-tiny"
    """Model shape."""
    layers: int | None = None
    """Only so many layers (default: all of the preset)."""
    prompts: int = 16
    """Prompts of one data-parallel rank."""
    samples: int = 4
    """Responses to each prompt; they share its prefill."""
    prompt_tokens: int = 40
    """Tokens of a prompt."""
    new_tokens: int = 64
    """Tokens of a response, the longest one's where lengths differ."""
    lengths: Literal["equal", "long-tail"] = "equal"
    """Responses all alike; or log-normal, an eighth of --new-tokens in the median, cut at --new-tokens."""
    repeats: int = 5
    """Timed runs; the median counts."""
    warm_up: bool = True
    """A run before them that does not count; off: the first timed one compiles kernels and captures graphs."""
    exact: bool = False
    """Kernels that give a token the same bits whatever its batch (CUDA, bf16)."""
    mixed_settings: bool = False
    """Also time the same prompts and lengths where every request has other settings: temperature, top-k, top-p, min-p,
    stops, seed, wanted log-probabilities."""
    both_weights: bool = False
    """Also time the same requests with --sampling.weights fp8, by the same model in the same run."""
    compare: Literal["none", "transformers", "vllm"] = "none"
    """Also time another library on the same shape, after our weights are freed (one process): transformers' `generate` and
    `generate_batch` (equal lengths), or vLLM on the same requests."""
    flights: bool = True
    """On a GPU, launch each step before the host has looked at the tokens of the last; off: after it."""
    early: bool = True
    """On a GPU, launch a decoding pass's kernels while the ones before still run; off: after them."""
    figure: Path | None = None
    """Picture of the last timed run: tokens per second beside the floor, over time (.png, .svg or .pdf)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name in ("prompts", "samples", "repeats"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} is {getattr(self, name)}, below 1")
        for name in ("new_tokens", "prompt_tokens"):
            require(getattr(self, name) >= 2, f"--{name.replace('_', '-')} is {getattr(self, name)}, below 2")
        require(self.layers is None or self.layers >= 1, f"--layers is {self.layers}, below 1")
        check_sampling(self.sampling)
        check_figure(self.figure)
        alone = self.compare == "none" or self.parallel == ParallelConfig()
        require(alone, f"--compare {self.compare}: one process, leave --parallel alone")
        require(self.compare != "transformers" or self.lengths == "equal", "--compare transformers: --lengths equal")
        require(not (self.both_weights and self.sampling.narrow), "--both-weights: leave --sampling.weights at bf16")
        self.sampling.check_weights(self.exact, has_experts=True)
        require(not (self.both_weights and self.exact), "--both-weights: there is no --exact with fp8, take one")

    def shape(self) -> ModelConfig:
        shape = get_preset(self.preset)
        return replace(shape, num_layers=self.layers or shape.num_layers)


def main(config: BenchSampler) -> None:
    prepare()
    import torch

    from megatron_ring.model.exact import check_exact
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.parallel.device import has_cuda
    from megatron_ring.sampler.sampler import Sampler

    if TYPE_CHECKING:
        from tools.bench_train_measure import ceilings
    else:
        from bench_train_measure import ceilings

    if config.compare == "vllm":
        check_vllm()
    shape, requests = config.shape(), requests_of(config)
    check_lengths([(len(r.prompt_tokens), r.max_new_tokens) for r in requests], shape, config.sampling)
    here = context.initialize(config.parallel, shape, 0)
    dtype = torch.bfloat16 if has_cuda() else torch.float32
    if config.exact:
        check_exact(config.parallel, dtype, "native")
    rates = ceilings(here.device, dtype)
    model = build_model(shape, here, dtype=dtype, exact=config.exact)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    out: dict[str, Any] = {
        "preset": config.preset, "layers": shape.num_layers, "precision": str(dtype)[6:], "prompts": config.prompts,
        "samples": config.samples, "prompt_tokens": config.prompt_tokens, "new_tokens": config.new_tokens,
        "lengths": config.lengths, "exact": config.exact,
        "read_gb_per_second": rates["read_gb_per_second"], "gemm_tflops": rates["gemm_tflops"],
    }  # fmt: skip
    sampler = Sampler(model, here, config.sampling, -1, decode)
    sampler.runner.flies, sampler.runner.early = sampler.runner.flies and config.flights, config.early
    watch = Watch(sampler, rates)
    out["ring"], turns = measure(config, sampler, requests, watch)
    if has_cuda():
        out["ring"]["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if config.mixed_settings:
        out["mixed"], _ = measure(config, sampler, mixed(requests, shape.vocab_size), watch)
        for name in ("decode_tokens_per_second", "tokens_per_second"):
            out[f"mixed_{name}_over_uniform"] = out["mixed"][name] / out["ring"][name]
    if config.both_weights:
        sampler.release()
        narrow = Sampler(model, here, replace(config.sampling, weights="fp8"), -1, decode)
        narrow.runner.flies, narrow.runner.early = sampler.runner.flies, config.early
        out["fp8"], _ = measure(config, narrow, requests, Watch(narrow, rates))
        for name in ("decode_tokens_per_second", "tokens_per_second"):
            out[f"fp8_{name}_over_bf16"] = out["fp8"][name] / out["ring"][name]
        del narrow
    if config.compare != "none":
        del model, sampler, watch
        gc.collect()  # the sampler and what watched it hold each other
        compare(config.compare, shape, requests, config.sampling.most_rows("cuda"), config.repeats, out)
    if here.is_main:
        print(json.dumps(out), flush=True)
    if here.is_main and config.figure is not None:
        draw(config.figure, out, turns)


def measure(
    config: BenchSampler, sampler: Sampler, requests: list[GenerationRequest], watch: Watch
) -> tuple[dict[str, Any], list[Turn]]:
    """Medians of the timed runs, and the steps of the last. A run ends on the host: it has every token."""
    from megatron_ring.parallel import collectives

    runs = []
    new = sum(request.max_new_tokens for request in requests)
    for _ in range(config.repeats + config.warm_up):
        late: list[float] = []  # when 90 % of the requests were done, and the least that had to take until then

        def note(finished: int, late: list[float] = late) -> None:
            if not late and finished >= 0.9 * len(requests):
                late += [time.perf_counter() - watch.began, sum(watch.floor.values())]

        collectives.barrier()
        watch.start()
        with named_as_here():
            found = sampler.generate(requests, on_progress=note)
        whole = time.perf_counter() - watch.began
        digest = sha256(repr([response.tokens for response in found]).encode()).hexdigest()[:16]
        runs.append(
            {
                "tokens_per_second": new / whole,
                "of_floor": sum(watch.floor.values()) / whole,
                "of_floor_until_90_percent_are_done": late[1] / late[0],
                "decode_tokens_per_second": watch.decoded["decode"] / watch.seconds["decode"],
                "decode_floor_tokens_per_second": watch.decoded["decode"] / watch.floor["decode"],
                "decode_of_floor": watch.floor["decode"] / watch.seconds["decode"],
                "decode_of_floor_sum": watch.floor_sum["decode"] / watch.seconds["decode"],
                "decode_bound_by_reading": watch.reading_longer / max(1, watch.passes),
                "prefill_tokens_per_second": watch.prefilled / watch.seconds["prefill"],
                "prefill_of_floor": watch.floor["prefill"] / watch.seconds["prefill"],
                "host_share": 1 - sum(watch.seconds.values()) / whole,
                "seconds": whole,
            }
        )
    timed = runs[config.warm_up :]
    medians = {name: statistics.median(run[name] for run in timed) for name in timed[0]}
    seconds = [run["seconds"] for run in timed]
    more = {
        "spread": max(seconds) / min(seconds) - 1, "first_run_seconds": runs[0]["seconds"], "tokens": new,
        "decoded_together_at_most": watch.widest, "prefilled_tokens": watch.prefilled,
        "tokens_of_prompts": config.prompts * config.prompt_tokens, "graphs": sampler.graphs,
        "flights": sampler.runner.flies, "early": sampler.runner.early, "digest": digest, "by_rows": by_rows(watch.turns),
    }  # fmt: skip
    return medians | more, watch.turns


def requests_of(config: BenchSampler) -> list[GenerationRequest]:
    import torch

    from megatron_ring.sampler.requests import GenerationRequest

    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(config.shape().vocab_size, (config.prompts, config.prompt_tokens), generator=generator).tolist()
    count = config.prompts * config.samples
    lengths = torch.full((count,), config.new_tokens)
    if config.lengths == "long-tail":
        lengths = (torch.randn(count, generator=generator).exp() * config.new_tokens / 8).long().clamp(2, config.new_tokens)
    asked = [(prompt, seed) for prompt in prompts for seed in range(config.samples)]
    return [GenerationRequest(prompt, seed, n) for (prompt, seed), n in zip(asked, lengths.tolist(), strict=True)]


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchSampler, "bench_sampler", "Speed of the sampler on random weights.")))
