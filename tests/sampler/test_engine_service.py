"""What a server relies on: the engine leaves nothing behind, refuses what it cannot serve, tells all of a failure, and goes
on under other weights."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import RequestSampling, SamplingConfig
from megatron_ring.errors import RequestError, UserError
from tests.layouts import LAYOUTS
from tests.sampler.generating import make
from tests.sampler.test_engine import EOS, USUAL, check_empty, decode, each_alone, limited, requests


def many_requests() -> tuple[int, int, int]:
    """Bytes that the sampler's code holds after 1,000 and after 2,000 requests, and requests that are still somewhere."""
    from megatron_ring.sampler.requests import GenerationRequest, Prefix
    from megatron_ring.sampler.requests import Sequence as Response
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    engine = Sampler(model, here, SamplingConfig(max_batch=64, kv_tokens=4096), EOS, decode).engine()
    held, done = [], 0
    tracemalloc.start()
    for i in range(2000):
        sampling = RequestSampling(temperature=0.5 + i / 1000, stop_strings=(chr(97 + i % 26),))
        number = engine.add(GenerationRequest([5 + i % 300, 4 + i // 300, 9], i, 1 + i % 3, sampling=sampling))
        if i % 10 == 0:
            engine.cancel(number)
        if i % 40 == 39:
            done += len(engine.step().finished)
        if i % 1000 == 999:
            done += settle(engine)
            gc.collect()
            taken = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/megatron_ring/sampler/*")])
            held.append(sum(trace.size for trace in taken.traces))
    tracemalloc.stop()
    assert done == 1800
    check_empty(engine)
    left = sum(isinstance(one, Response | Prefix | GenerationRequest) for one in gc.get_objects())
    return held[0], held[1], left


def settle(engine: Any) -> int:
    """Answer all that has come; how many requests that were."""
    done = 0
    while (report := engine.step()).tokens or engine.has_work:
        done += len(report.finished)
    return done


@pytest.mark.distributed
def test_requests_leave_nothing_behind(run_on: Any) -> None:
    ((first, second, left),) = run_on(1, many_requests)
    assert left == 0
    assert second - first < 3_000  # 3 bytes a request


def weights_that_move(horizon: int, flies: bool, asks: bool) -> tuple[Any, Any, Any, Any]:
    """A response half of which is sampled under other weights, and what `generate` makes of its first half; one whose cache
    was given back on the way, and alone. Where nobody `asks` how far the first is, that is read from its versions."""
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    sampler = Sampler(model, here, USUAL, EOS, decode)
    sampler.horizon, sampler.runner.flies = horizon, flies
    first, second = requests()[8], requests()[11]
    engine = sampler.engine(version=3)
    numbers = [engine.add(first), engine.add(second)]
    tokens = [token for _ in range(5 if horizon == 1 else 3) for token in of(engine.step(), numbers[0])]
    before = len(tokens)
    begun = engine.partial(numbers[0]) if asks else None
    sampler.release()
    engine.cancel(numbers[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    engine.weights_changed(4)
    engine.close()
    found: dict[int, Any] = {}
    while not (report := engine.step()).closed:
        tokens += of(report, numbers[0])
        found |= report.finished
    assert list(found) == [numbers[0]] and tokens == list(found[numbers[0]].tokens)
    if begun is None:
        begun = first_tokens(found[numbers[0]], found[numbers[0]].versions[0][1])
    assert flies == (len(begun.tokens) > before)  # these were in the air
    wanted = Sampler(model, here, USUAL, EOS, decode).generate([first.continued(begun)], version=4)[0]
    engine = sampler.engine()
    number = engine.add(second)
    for _ in range(5 if horizon == 1 else 3):
        engine.step()
    sampler.release()
    engine.step()
    return found[numbers[0]], wanted, run_out(engine)[number], sampler.generate([second])[0]


def of(report: Any, number: int) -> list[int]:
    """The tokens of a request in a report."""
    return list(report.tokens[number].tokens) if number in report.tokens else []


def first_tokens(whole: Any, count: int) -> Any:
    from megatron_ring.sampler.columns import NAMES

    columns = {name: getattr(whole, name)[:count] for name in NAMES}
    return replace(whole, **columns, versions=whole.versions[:1], finish_reason=None)


def run_out(engine: Any) -> dict[int, Any]:
    engine.close()
    return run_out_open(engine)


def run_out_open(engine: Any) -> dict[int, Any]:
    """All answers until somebody has closed the engine and nothing is left."""
    found: dict[int, Any] = {}
    while not (report := engine.step()).closed:
        found |= report.finished
    return found


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("horizon", "flies", "asks"), [(1, False, True), (2, False, False), (2, True, True), (2, True, False)]
)
def test_what_is_begun_goes_on_under_other_weights(run_on: Any, horizon: int, flies: bool, asks: bool) -> None:
    ((found, wanted, released, whole),) = run_on(1, weights_that_move, horizon, flies, asks)
    assert found.tokens == wanted.tokens and found.versions == wanted.versions
    assert [version for version, _ in found.versions] == [3, 4] and all(count > 1 for _, count in found.versions)
    assert torch.allclose(torch.tensor(found.logprobs), torch.tensor(wanted.logprobs), atol=1e-5)
    assert released.tokens == whole.tokens and len(whole.tokens) > 5


def refusals() -> list[str]:
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    sampler = Sampler(model, here, SamplingConfig(kv_tokens=64, max_batch=2), EOS)
    engine, said = sampler.engine(), []
    fine = GenerationRequest([5] * 8, 1, 4)
    engine.add(fine)
    for request in (
        GenerationRequest([5] * 60, 1, 5), GenerationRequest([], 1, 5), GenerationRequest([5] * 1020, 1, 5),
        GenerationRequest([5], -1, 5), GenerationRequest([5], 1, 5, columns=frozenset({"logits"})),
        GenerationRequest([5], 1, 5, sampling=RequestSampling(stop_strings=("a",))),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            engine.add(request)
        assert isinstance(error.value, RequestError) == (request.sampling is None)
        said.append(str(error.value))
    with pytest.raises(RuntimeError, match="an engine open"):
        sampler.generate([fine])
    answer = run_out(engine)[0]
    with pytest.raises(RuntimeError, match="closed"):
        engine.add(fine)
    assert sampler.generate([fine])[0] == answer
    return said


@pytest.mark.distributed
def test_what_cannot_be_served_is_refused_and_nothing_else(run_on: Any) -> None:
    ((large, empty, long, seed, column, stop),) = run_on(1, refusals)
    assert "60 tokens and 5 new ones exceed the KV cache of 64: raise --sampling.kv-tokens" in large
    assert "a prompt without tokens" in empty and "exceed the model's 1024 positions" in long and "seed -1" in seed
    assert "no column is named logits: ask for some of tokens, logprobs" in column and "no tokenizer" in stop


def failing(parallel: ParallelConfig, flies: bool) -> tuple[str, int]:
    """What each rank is told when rank 1 fails between two steps, and how many requests it has answered."""
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(parallel)
    sampler = Sampler(model, here, USUAL, EOS, decode)
    sampler.horizon, sampler.runner.flies = 1 + flies, flies
    engine, answered = sampler.engine(), 0
    try:
        if engine.leads:
            engine.add(requests()[4])
            engine.close()
        engine.step()
        if here.rank == 1:
            engine.fail(KeyError("lost"))
        while not (report := engine.step()).closed:
            answered += len(report.finished)
    except RuntimeError as error:
        return str(error), answered
    return "", answered


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "flies"),
    [("dp2", False), ("tp2", False), ("ep2", False), ("pp2", False), ("dp2", True), ("tp2", True), ("ep2", True)],
)
def test_a_failure_is_raised_by_those_that_step_together(run_on: Any, layout: str, flies: bool) -> None:
    first, second = run_on(2, failing, LAYOUTS[layout][1], flies)
    assert second == ("rank 1: KeyError: 'lost'", 0)
    assert first == (second if layout != "dp2" else ("", 1))  # replicas that share nothing are not stopped


def followers() -> tuple[bool, list[str]]:
    """What ranks that do not lead may not do."""
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig(tensor=2))
    engine, said = Sampler(model, here, USUAL, EOS, decode).engine(), []
    for call in (lambda: engine.add(requests()[0]), lambda: engine.cancel(0)):
        if not engine.leads:
            with pytest.raises(RuntimeError) as error:
                call()
            said.append(str(error.value))
    engine.close()
    assert engine.step().closed
    return engine.leads, said


@pytest.mark.distributed
def test_the_leader_alone_brings_requests(run_on: Any) -> None:
    found = run_on(2, followers)
    assert found[0] == (True, []) and found[1][0] is False
    assert all("only the leader of a replica" in line for line in found[1][1]) and len(found[1][1]) == 2


def from_a_thread(alone: list[Any]) -> int:
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    engine, numbers = Sampler(model, here, limited(4, 8, 5, 40), EOS, decode).engine(), {}

    def ask() -> None:
        for place, request in enumerate(requests()):
            numbers[engine.add(request)] = place
        engine.close()

    asking = threading.Thread(target=ask)
    asking.start()
    found: dict[int, Any] = {}
    while not (report := engine.step()).closed:
        found |= report.finished
    asking.join()
    assert all(completion.tokens == alone[numbers[number]].tokens for number, completion in found.items())
    return len(found)


@pytest.mark.distributed
def test_another_thread_may_ask(run_on: Any) -> None:
    (alone,) = run_on(1, each_alone)
    assert run_on(1, from_a_thread, alone) == [16]


def between_two_looks() -> list[int]:
    """Requests answered when all come, and the end with them, just after a step has looked for news."""
    from megatron_ring.sampler.edge import StepEdge
    from megatron_ring.sampler.engine import Engine, TokenBudget
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    sampler = Sampler(model, here, USUAL, EOS, decode)
    coming = list(requests()[:3])

    def ask() -> int:  # asked by a step after it has emptied its inbox
        while coming:
            engine.add(coming.pop())
            if not coming:
                engine.close()
        return 0

    size = sampler.engine().size
    sampler.release()
    engine = Engine(sampler.runner, size, EOS, decode, StepEdge(here), budget=TokenBudget(10**9, ask))
    return sorted(run_out_open(engine))


@pytest.mark.distributed
def test_what_comes_with_the_end_is_answered(run_on: Any) -> None:
    assert run_on(1, between_two_looks) == [[0, 1, 2]]
