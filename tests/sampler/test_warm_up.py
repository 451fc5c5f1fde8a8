"""What is done before the first request: which graphs a server captures, and that it leaves the engine as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import RequestSampling, SamplingConfig
from tests.layouts import LAYOUTS
from tests.sampler.generating import make
from tests.sampler.test_engine import EOS, check_empty, decode


@pytest.mark.parametrize("rows", [1, 20, 64, 256, 700])
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


def test_batches_are_little_larger_than_what_they_hold() -> None:
    from megatron_ring.sampler.decoding import bucket

    for rows in range(1, 3000):
        size = bucket(rows)
        assert rows <= size == bucket(size) and size <= bucket(rows + 1)
        assert size < 2 * rows if rows <= 16 else size <= 1.5 * rows if rows <= 256 else size <= 1.25 * rows


class Direct:
    """In the place of `Graphs`, which need a GPU: what is captured runs as it is."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work


def captured(parallel: ParallelConfig, looks: list[int]) -> tuple[Any, list[Any], int, dict[int, list[int]]]:
    """What a warm-up did that ends at look `looks[rank]`, the keys of its graphs in order, how many there are after
    requests, and the answers."""
    from megatron_ring.sampler import decoding
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.sampler.warm_up import warm_up

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "Graphs", Direct)
        model, here = make(parallel)
        sampler = Sampler(model, here, SamplingConfig(max_batch=5, kv_tokens=2048), EOS, decode)
        sampler.runner.graphs, sampler.horizon, sampler.runner.flies = True, 4, True
        engine, count = sampler.engine(), itertools.count()
        done = warm_up(engine, lambda: next(count) >= looks[here.rank])
        check_empty(engine)
        keys = list(sampler.runner.loop().captured)
        if engine.leads:
            for number in range(6):  # the last one ends at the model's last position
                cut = RequestSampling(top_k=3) if number % 2 else None
                engine.add(GenerationRequest([5, 9, 30 + number] * (1 + 336 * (number == 5)), 1, 8 + number, sampling=cut))
            engine.close()
        answers: dict[int, list[int]] = {}
        while not (report := engine.step()).closed:
            answers |= {number: list(one.tokens) for number, one in report.finished.items()}
        return done, keys, sampler.runner.captured, dict(sorted(answers.items()))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["one", "ep2", "tp2"])
def test_ranks_capture_the_same_graphs(run_on: Any, layout: str) -> None:
    """All that may be asked for, or as many as the rank that has had enough first; answers are those without."""
    from megatron_ring.sampler.warm_up import WarmUp

    processes, parallel = LAYOUTS[layout]
    sizes = {"tp2": 3}.get(layout, 4)  # 8, 4, 2 and 1; rows are split by two with TP=2
    most = 4 * sizes  # contexts of 512 and 1,024 tokens, which the model has, cut and not
    all_there = run_on(processes, captured, parallel, [99, 99])
    ended = run_on(processes, captured, parallel, [sizes + 2, 99])
    assert len({tuple(keys) for _, keys, *_ in ended}) == 1
    for (done, keys, after, answers), (some, first_keys, later, same) in zip(all_there, ended, strict=True):
        assert done == WarmUp(most, 0, 1024, 0) and len(keys) == after == most and len(answers) == 6
        # The made-up prompts were decoded by some that come later in the order.
        assert some.left == most - some.captured > 0 and some.longest == 0 and some.captured < later <= most
        assert {(key.span, key.cuts) for key in first_keys if key.cuts} == {(512, True)} and same == answers


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
    processes, parallel = LAYOUTS[layout]
    found = run_on(processes, warmed, parallel)
    assert all(filled > 299 for filled, _ in found) and len({tuple(tokens) for _, tokens in found}) == 1
