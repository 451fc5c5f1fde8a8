"""The engine: a request gets what it gets alone, whatever comes and decodes beside it, under every layout."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import RequestSampling, SamplingConfig
from megatron_ring.errors import RequestError, UserError
from tests.layouts import LAYOUTS
from tests.sampler.test_sampler import make, prompts

EOS = 96  # often sampled

USUAL = SamplingConfig(top_p=0.95, stop_token_ids=(17,))
SETTINGS = [
    None, RequestSampling(), RequestSampling(temperature=0.0), RequestSampling(temperature=0.7, top_p=0.9),
    RequestSampling(top_k=5, min_p=0.1, stop_token_ids=(429, 462)),
    RequestSampling(temperature=1.5, stop_strings=("e", "zz")),
    RequestSampling(temperature=0.0, top_k=3),
    RequestSampling(temperature=0.6, min_p=0.3, repetition_tokens=4, repetition_ngram=2),
]  # fmt: skip
WANTED = [None, frozenset({"logprobs"}), frozenset[str]()]
Script = list[tuple[str, int]]  # add or cancel the n-th, or take n steps


def decode(tokens: Sequence[int], skip_special: bool = True) -> str:
    return "".join(chr(97 + token % 26) for token in tokens)


def requests(count: int = 16) -> list[Any]:
    """Of five prompts, one of a single token, all with other settings, lengths and wanted columns."""
    from megatron_ring.sampler.requests import GenerationRequest, request_seed

    asked = [*prompts(4), [9]]
    return [
        GenerationRequest(
            asked[i % len(asked)], request_seed(4, i), 3 + 5 * i % 14, sampling=SETTINGS[i % len(SETTINGS)],
            columns=WANTED[i % len(WANTED)],
        )
        for i in range(count)
    ]  # fmt: skip


def each_alone() -> list[Any]:
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    return [Sampler(model, here, USUAL, EOS, decode).generate([request])[0] for request in requests()]


@pytest.fixture(scope="module")
def alone(run_on: Any) -> list[Any]:
    (found,) = run_on(1, each_alone)
    assert {one.finish_reason for one in found} == {"stop", "stop_token", "stop_string", "repetition", "length"}
    assert {one.absent for one in found} == {(), ("processed_logprobs", "entropies"), (
        "logprobs", "processed_logprobs", "entropies")}  # fmt: skip
    return found


def limited(batch: int, page: int, chunk: int, more: int) -> SamplingConfig:
    """The usual settings in a cache for the longest request and `more` tokens."""
    longest = max(len(request.prompt_tokens) + request.max_new_tokens for request in requests())
    tokens = -(-longest // page) * page + more
    return SamplingConfig(
        top_p=0.95, stop_token_ids=(17,), max_batch=batch, page_size=page, prefill_tokens=chunk, kv_tokens=tokens
    )


Outcome = tuple[dict[int, Any], dict[int, list[Any]], set[int], int]


def drive(sampler: Any, script: Script) -> Outcome:
    """Requests that finished, the numbers of each that steps brought, and those that were cancelled before they finished, by
    place among `requests`; preemptions. A rank that does not lead takes the steps alone."""
    from megatron_ring.sampler.columns import NAMES

    engine, asked = sampler.engine(), requests()
    added: list[int] = []
    finished: dict[int, Any] = {}
    brought: dict[int, list[Any]] = {}
    cancelled: set[int] = set()

    def take(report: Any) -> bool:
        for number, sampled in report.tokens.items():
            assert added[number] not in cancelled and len(sampled.tokens) > 0
            columns = brought.setdefault(added[number], [[] for _ in NAMES])
            for column, values in zip(columns, sampled.columns, strict=True):
                column += values
        for number, completion in report.finished.items():
            assert added[number] not in finished
            finished[added[number]] = completion
        return bool(report.closed)

    for what, n in script:
        if what == "add" and n not in added:
            added.append(n)
            assert not engine.leads or engine.add(asked[n]) == len(added) - 1
        elif what == "cancel" and added:
            number = n % len(added)
            if engine.leads:
                engine.cancel(number)
            if added[number] not in finished:
                cancelled.add(added[number])
        elif what == "steps":
            for _ in range(n):
                assert not take(engine.step())
    if engine.leads:
        engine.close()
    while not take(engine.step()):
        pass
    assert set(finished) | cancelled == set(added) and not set(finished) & cancelled
    check_empty(engine)
    return finished, brought, cancelled, engine.scheduler.preemptions


def check_empty(engine: Any) -> None:
    """Nothing is held of any request."""
    scheduler = engine.scheduler
    assert scheduler.pool.free == engine.size.pages and len(scheduler._rows) == scheduler.max_batch
    assert not (scheduler.sequences or scheduler.running or scheduler._waiting or scheduler._prefixes or engine._inbox)
    assert scheduler._blocked == 0


def check_alone(found: dict[int, Any], brought: dict[int, list[Any]], alone: list[Any]) -> int:
    """That each is what it is alone; how many tokens were looked at."""
    from megatron_ring.sampler.columns import NAMES

    for place, one in found.items():
        wanted = alone[place]
        assert (one.tokens, one.finish_reason, one.absent) == (wanted.tokens, wanted.finish_reason, wanted.absent), place
        for name, column in zip(NAMES, brought[place], strict=True):
            ours, theirs = getattr(one, name), getattr(wanted, name)
            assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), atol=1e-5)
            assert name in one.absent or torch.tensor(column).to(torch.float32).tolist() == list(map(float, ours))
    return sum(len(one.tokens) for one in found.values())


actions = st.tuples(st.sampled_from(["add", "add", "add", "steps", "steps", "cancel"]), st.integers(0, 15)).map(
    lambda action: ("steps", action[1] % 4) if action[0] == "steps" else action
)
scripts = st.lists(actions, min_size=15, max_size=50)
limits = st.builds(
    limited, batch=st.integers(1, 7), page=st.sampled_from([1, 3, 8, 32]), chunk=st.sampled_from([1, 5, 8192]),
    more=st.integers(0, 40),
)  # fmt: skip


def any_script(alone: list[Any]) -> dict[str, int]:
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    counts = {"tokens": 0, "cancelled": 0, "preemptions": 0}

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(script=scripts, sampling=limits, horizon=st.sampled_from([1, 1, 4]))
    def check(script: Script, sampling: SamplingConfig, horizon: int) -> None:
        sampler = Sampler(model, here, sampling, EOS, decode)
        sampler.horizon = horizon
        found, brought, cancelled, preemptions = drive(sampler, script)
        counts["tokens"] += check_alone(found, brought, alone)
        counts["cancelled"] += len(cancelled)
        counts["preemptions"] += preemptions

    check()
    return counts


@pytest.mark.distributed
def test_what_comes_beside_it_does_not_matter(run_on: Any, alone: list[Any]) -> None:
    """Arrivals and cancellations at any step, mixed settings in one batch, little memory."""
    (counts,) = run_on(1, any_script, alone)
    assert counts["tokens"] > 1000 and counts["cancelled"] > 20 and counts["preemptions"] > 10, counts


def driven(parallel: ParallelConfig, cases: list[tuple[list[Script], SamplingConfig, int]]) -> tuple[int, list[Any]]:
    """Each replica goes through a script of its own, as many steps long as the others'."""
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(parallel)
    found = []
    for of_replicas, sampling, horizon in cases:
        sampler = Sampler(model, here, sampling, EOS, decode)
        sampler.horizon = horizon
        found.append(drive(sampler, of_replicas[here.data_rank]))
    return here.data_rank, found


def as_long(first: Script, second: Script) -> list[Script]:
    """The second with steps put in or left out, so that both take as many."""
    steps = sum(n for what, n in first if what == "steps")
    evened: Script = []
    for what, n in second:
        if what == "steps":
            n = min(n, steps)
            steps -= n
        evened.append((what, n))
    return [first, [*evened, ("steps", steps)]]


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["dp2", "tp2", "ep2", "pp2"])
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=st.lists(st.tuples(st.builds(as_long, scripts, scripts), limits, st.sampled_from([1, 3])), min_size=2,
                      max_size=2))  # fmt: skip
def test_nor_does_the_layout(run_on: Any, alone: list[Any], layout: str, cases: list[Any]) -> None:
    """The leader of each replica brings its requests; the other ranks learn of them, and get the same answers."""
    processes, parallel = LAYOUTS[layout]
    if layout == "pp2":  # one pass through a pipeline cannot feed itself
        cases = [(each, sampling, 1) for each, sampling, _ in cases]
    answers = run_on(processes, driven, parallel, cases)
    for _, found in answers:
        for finished, brought, _, _ in found:
            check_alone(finished, brought, alone)
    if layout in ("tp2", "pp2"):
        assert [found[0] for found in answers[0][1]] == [found[0] for found in answers[1][1]]


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


def weights_that_move() -> tuple[Any, Any, Any, Any]:
    """A response half of which is sampled under other weights, and what `generate` makes of its first half; one whose cache
    was given back on the way, and alone."""
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    sampler = Sampler(model, here, USUAL, EOS, decode)
    first, second = requests()[8], requests()[11]
    engine = sampler.engine(version=3)
    numbers = [engine.add(first), engine.add(second)]
    for _ in range(5):
        engine.step()
    begun = engine.partial(numbers[0])
    sampler.release()
    engine.cancel(numbers[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    engine.weights_changed(4)
    found = run_out(engine)
    wanted = Sampler(model, here, USUAL, EOS, decode).generate([first.continued(begun)], version=4)[0]
    engine = sampler.engine()
    number = engine.add(second)
    for _ in range(5):
        engine.step()
    sampler.release()
    engine.step()
    return found[numbers[0]], wanted, run_out(engine)[number], sampler.generate([second])[0]


def run_out(engine: Any) -> dict[int, Any]:
    found: dict[int, Any] = {}
    engine.close()
    while not (report := engine.step()).closed:
        found |= report.finished
    return found


@pytest.mark.distributed
def test_what_is_begun_goes_on_under_other_weights(run_on: Any) -> None:
    ((found, wanted, released, whole),) = run_on(1, weights_that_move)
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


def failing(parallel: ParallelConfig) -> tuple[str, int]:
    """What each rank is told when rank 1 fails between two steps, and how many requests it has answered."""
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(parallel)
    engine, answered = Sampler(model, here, USUAL, EOS, decode).engine(), 0
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
@pytest.mark.parametrize("layout", ["dp2", "tp2", "ep2", "pp2"])
def test_a_failure_is_raised_by_those_that_step_together(run_on: Any, layout: str) -> None:
    first, second = run_on(2, failing, LAYOUTS[layout][1])
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
def test_another_thread_may_ask(run_on: Any, alone: list[Any]) -> None:
    assert run_on(1, from_a_thread, alone) == [16]
