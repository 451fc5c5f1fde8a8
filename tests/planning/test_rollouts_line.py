"""The planned host memory of a step's responses against records really made and routes of models really built."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.objective import CorrectionConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_LITE, RING_TINY
from megatron_ring.config.rl import RLConfig, RLDataConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.planning.arithmetic import rollouts_line
from tests.layouts import LAYOUTS
from tests.rollout.responses import completion


def make_config(parallel: ParallelConfig, routes: Any) -> RLConfig:
    here = Path("nowhere")
    data = RLDataConfig(prompts=here, tokenizer=here, micro_batch_tokens=24_576)
    return RLConfig(
        run_dir=here, init_from=here, data=data, parallel=parallel, prompts_per_step=512, samples_per_prompt=16,
        sampling=SamplingConfig(max_new_tokens=22_528), correction=CorrectionConfig(routes=routes),
    )  # fmt: skip


def test_at_the_published_size() -> None:
    """L = 512, K = 16, 256 GPUs: 32 responses on each; docs/c3po.md has the 168 bytes of experts."""
    one = completion(5)
    columns = (one.tokens, one.logprobs, one.processed_logprobs, one.entropies)
    of_token = sum(column.itemsize for column in columns)
    for routes, more in (("ignore", 0), ("replay", 168)):
        _, text = rollouts_line(make_config(ParallelConfig(expert=8), routes), RING_LITE, 256)
        size = 32 * 22_528 * (of_token + more) / 2**20
        assert text.startswith(f"up to {size:,.0f} MiB of host memory"), text


def width(parallel: ParallelConfig, shape: ModelConfig) -> int:
    """Bytes of experts that this process notes for a token."""
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.model.routes import new_routes
    from megatron_ring.parallel import context

    return new_routes(build_model(shape, context.initialize(parallel, shape, seed=0)), 1).nbytes


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["one", "pp2"])
@pytest.mark.parametrize("experts", [8, 512])
def test_experts_of_a_token_are_those_of_the_fullest_stage(run_on: Any, layout: str, experts: int) -> None:
    processes, parallel = LAYOUTS[layout]
    shape = replace(RING_TINY, num_layers=4, first_dense_layers=1, num_experts=experts)
    _, text = rollouts_line(make_config(parallel, "measure"), shape, 1)
    found = re.search(r"and (\d+) of experts", text)
    assert found and int(found[1]) == max(run_on(processes, width, parallel, shape))
