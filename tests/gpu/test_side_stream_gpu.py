"""Shared experts on a stream of their own: no bit of what is sampled depends on it, and no memory is taken too early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import SamplingConfig

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from tests.gpu.test_sampler_gpu import model_and_requests

Work = Callable[[], torch.Tensor]
WIDTH = 4096


def chain(x: torch.Tensor, weights: list[torch.Tensor], begin: Callable[[Work], Work]) -> torch.Tensor:
    """Steps that each wait for a long work begun before them. What it reads is let go of at once, and what is freed is
    overwritten at once, by both streams."""
    first, second = weights
    for _ in range(20):

        def work(x: torch.Tensor = x) -> torch.Tensor:
            inner = torch.tanh(x @ first)
            found = inner @ second
            del inner
            torch.full_like(found, float("nan"))
            return found

        finish = begin(work)
        y = torch.sin(x)
        del x, work
        torch.full_like(y, float("nan"))
        found = finish()
        x = y + 0.1 * found
        del y, found, finish
        torch.full_like(x, float("nan"))
    return x


def in_turn(work: Work) -> Work:
    found = work()
    return lambda: found


@pytest.mark.parametrize("captured", [False, True])
def test_no_memory_is_used_anew_before_it_was_read(captured: bool) -> None:
    from megatron_ring.parallel.graphs import Graphs, SideStream

    generator = torch.Generator("cuda").manual_seed(0)
    weights = [torch.randn(WIDTH, WIDTH, device="cuda", generator=generator).bfloat16() / 64 for _ in range(2)]
    x = torch.randn(512, WIDTH, device="cuda", generator=generator).bfloat16()
    wanted = chain(x.clone(), weights, in_turn)
    assert wanted.isfinite().all() and (wanted - x).abs().max() > 1
    side, out = SideStream(), torch.empty_like(x)

    def run() -> None:
        out.copy_(chain(x.clone(), weights, lambda work: side.beside(work).result))

    run()
    assert torch.equal(out, wanted)
    turn = Graphs().capture(run) if captured else run
    for _ in range(20):
        out.zero_()
        turn()
        assert torch.equal(out, wanted)


def with_and_without(settings: dict[str, Any], rows: int) -> tuple[list[int], list[list[Any]]]:
    """How often work was begun beside, and what was drawn: by kernels one after another, with some launched early, and with
    some early and some beside, twice."""
    from megatron_ring.parallel.graphs import Pending, SideStream
    from megatron_ring.sampler import decoding
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    begun = 0

    class Counted(SideStream):
        def beside(self, work: Work) -> Pending:
            nonlocal begun
            begun += 1
            return super().beside(work)

    model, here, requests = model_and_requests(ParallelConfig(), torch.bfloat16)
    if rows > len(requests):
        requests = [GenerationRequest([5 + i % 11, 17, 30 + i % 7], i, 40) for i in range(rows)]
    counts, found = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "SideStream", Counted)
        for overlaps, early in ((False, False), (False, True), (True, True)):
            begun, sampler = 0, Sampler(model, here, SamplingConfig(max_batch=rows, **settings), eos_id=-1)
            assert sampler.graphs
            sampler.runner.overlaps, sampler.runner.early = overlaps, early
            for _ in range(1 + overlaps):
                found.append([(c.tokens, c.logprobs, c.entropies) for c in sampler.generate(requests)])
            counts.append(begun)
            sampler.release()
    return counts, found


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("settings", "rows"),
    [({}, 20), ({"top_p": 0.9, "top_k": 50}, 20), ({"weights": "fp8"}, 20), ({}, 1000), ({}, 1200)],
    ids=["usual", "cut", "fp8", "1000 rows", "rows gathered first"],
)
def test_what_is_sampled_has_the_same_bits(run_on, settings: dict[str, Any], rows: int) -> None:
    (*without, with_it), (wanted, *found) = run_on(1, with_and_without, settings, rows)[0]
    assert without == [0, 0] and with_it > 0
    assert found == [wanted] * 3
