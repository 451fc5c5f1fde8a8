"""What is done before the first request: which graphs a server captures, and that it leaves the engine as it was."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import SamplingConfig
from tests.layouts import LAYOUTS
from tests.sampler.generating import make
from tests.sampler.test_engine import EOS, check_empty, decode


@pytest.mark.parametrize("rows", [1, 20, 64, 256, 300])
@pytest.mark.parametrize("longest", [100, 512, 513, 5000])
def test_no_batch_is_left_out(rows: int, longest: int) -> None:
    """Every batch and context that may come finds its graph, and no graph comes twice or is for a batch that cannot come."""
    from megatron_ring.sampler.decoding import GraphKey, bucket, span_of
    from megatron_ring.sampler.warm_up import keys_of

    keys = list(keys_of(rows, longest, bucket))
    wanted = {
        GraphKey(bucket(count), span_of(length), cuts)
        for count in range(1, rows + 1) for length in range(1, longest + 1, 100) for cuts in (False, True)
    }  # fmt: skip
    wanted |= {GraphKey(bucket(rows), span_of(longest), False)}
    assert len(keys) == len(set(keys)) and wanted <= set(keys)
    assert {key.size for key in keys} == {key.size for key in wanted} and max(key.span for key in keys) == span_of(longest)
    assert [key.span for key in keys] == sorted(key.span for key in keys)  # what comes first is what most requests need
    sizes = sorted({key.size for key in keys}, reverse=True)
    assert keys[: len(sizes)] == [GraphKey(size, span_of(1), False) for size in sizes]


def warmed(parallel: ParallelConfig) -> tuple[int, list[int]]:
    """Tokens that were filled before the first request, and its answer."""
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.sampler.warm_up import WarmUp, warm_up

    model, here = make(parallel)
    sampler = Sampler(model, here, SamplingConfig(max_batch=3, kv_tokens=2048, prefill_tokens=300), EOS, decode)
    engine, asked = sampler.engine(), GenerationRequest([5, 9, 30], 1, 8)
    alone = None
    assert warm_up(engine, lambda: False) == WarmUp(0, 0, 0, 0)  # no graphs on a CPU
    check_empty(engine)
    filled = engine.scheduler.filled
    if engine.leads:
        engine.add(asked)
        engine.close()
    while not (report := engine.step()).closed:
        for completion in report.finished.values():
            alone = list(completion.tokens)
    assert alone is not None
    return filled, alone


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["one", "ep2"])
def test_it_leaves_the_engine_as_it_was(run_on: Any, layout: str) -> None:
    processes, parallel = LAYOUTS[layout] if layout in LAYOUTS else (1, ParallelConfig())
    found = run_on(processes, warmed, parallel)
    assert all(filled > 299 for filled, _ in found) and len({tuple(tokens) for _, tokens in found}) == 1
