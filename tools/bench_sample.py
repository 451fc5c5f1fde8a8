#!/usr/bin/env python
"""Speed of the sampler on random weights: prefill and decoding, beside what the memory's bandwidth allows. Prints one JSON
object.

    python tools/bench_sample.py --preset ring-lite --prompts 16 --samples 16 --prompt-tokens 512 --new-tokens 128
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.cli import parse
from megatron_ring.config import ParallelConfig, SamplingConfig, require
from megatron_ring.errors import run_main
from megatron_ring.presets import get_preset

if TYPE_CHECKING:
    from megatron_ring.sampler.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class BenchSample:
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
    """Tokens of a response."""
    repeats: int = 5
    """Timed runs; the median counts."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name in ("prompts", "samples", "prompt_tokens", "repeats"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} is {getattr(self, name)}, below 1")
        require(self.new_tokens >= 2, f"--new-tokens is {self.new_tokens}, below 2")


def main(config: BenchSample) -> None:
    import torch

    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.parallel.device import has_cuda
    from megatron_ring.sampler.sampler import Sampler

    shape = get_preset(config.preset)
    shape = replace(shape, num_layers=config.layers or shape.num_layers)
    here = context.initialize(config.parallel, shape, 0)
    dtype = torch.bfloat16 if has_cuda() else torch.float32
    model = build_model(shape, here, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    sampler = Sampler(model, here, config.sampling, eos_id=-1)
    first, all_of = _runs(config, sampler, 1), _runs(config, sampler, config.new_tokens)
    sequences = config.prompts * config.samples
    decoding = (statistics.median(all_of) - statistics.median(first)) / (config.new_tokens - 1)
    batch = min(config.sampling.max_batch, sequences)
    read = _ceilings(here.device, dtype)["read_gb_per_second"]
    # One decoding step reads the weights once, the embedding aside, and the keys and values of the batch.
    weights = sum(p.nbytes for name, p in model.named_parameters() if not name.startswith("embedding"))
    heads = shape.num_key_value_heads // config.parallel.tensor
    context_tokens = config.prompt_tokens + config.new_tokens / 2
    moved = weights + batch * context_tokens * 2 * len(model.local_layers) * heads * shape.head_dim * dtype.itemsize
    out = {
        "preset": config.preset, "layers": shape.num_layers, "precision": str(dtype)[6:], "sequences": sequences,
        "batch": batch, "prompt_tokens": config.prompt_tokens, "new_tokens": config.new_tokens,
        "tokens_per_second": sequences * config.new_tokens / statistics.median(all_of),
        "spread": max(all_of) / min(all_of) - 1,
        "prefill_tokens_per_second": config.prompts * config.prompt_tokens / statistics.median(first),
        "decode_tokens_per_second": sequences / decoding, "decode_step_ms": 1000 * decoding * batch / sequences,
        "bandwidth_floor_tokens_per_second": batch / (moved / read / 1e9), "read_gb_per_second": read,
    }  # fmt: skip
    if here.is_main:
        print(json.dumps(out), flush=True)


def _runs(config: BenchSample, sampler: Sampler, new_tokens: int) -> list[float]:
    """Seconds of each timed run, after one for warming up. A run ends on the host: it has every token."""
    import torch

    from megatron_ring.parallel import collectives
    from megatron_ring.sampler.requests import GenerationRequest

    shape, generator = sampler.model.ring_config, torch.Generator().manual_seed(0)
    drawn = torch.randint(shape.vocab_size, (config.prompts, config.prompt_tokens), generator=generator).tolist()
    requests = [GenerationRequest(prompt, seed, new_tokens) for prompt in drawn for seed in range(config.samples)]
    seconds = []
    for _ in range(config.repeats + 1):
        collectives.barrier()
        began = time.perf_counter()
        sampler.generate(requests)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def _ceilings(device: Any, dtype: Any) -> dict[str, float]:
    if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
        from tools.bench_train_measure import ceilings
    else:
        from bench_train_measure import ceilings
    return ceilings(device, dtype)


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchSample, "bench_sample", "Speed of the sampler on random weights.")))
