"""The engine: a request gets what it gets alone, whatever comes and decodes beside it, under every layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import RequestSampling, SamplingConfig
from tests.layouts import LAYOUTS
from tests.sampler.generating import make, prompts

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
    more=st.sampled_from([0, 0, 3, 40]),
)  # fmt: skip


def any_script(alone: list[Any]) -> dict[str, int]:
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    counts = {"tokens": 0, "cancelled": 0, "preemptions": 0}

    @settings(max_examples=35, deadline=None, database=None, derandomize=True)
    @given(script=scripts, sampling=limits, how=st.sampled_from([(1, False), (1, False), (4, False), (4, True)]))
    def check(script: Script, sampling: SamplingConfig, how: tuple[int, bool]) -> None:
        sampler = Sampler(model, here, sampling, EOS, decode)
        sampler.horizon, sampler.runner.flies = how
        found, brought, cancelled, preemptions = drive(sampler, script)
        counts["tokens"] += check_alone(found, brought, alone)
        counts["cancelled"] += len(cancelled)
        counts["preemptions"] += preemptions

    check()
    return counts


@pytest.mark.slow
@pytest.mark.distributed
def test_what_comes_beside_it_does_not_matter(run_on: Any, alone: list[Any]) -> None:
    """Arrivals and cancellations at any step, mixed settings in one batch, little memory."""
    (counts,) = run_on(1, any_script, alone)
    assert counts["tokens"] > 1000 and counts["cancelled"] > 20 and counts["preemptions"] > 2, counts


def driven(parallel: ParallelConfig, cases: list[tuple[list[Script], SamplingConfig, int, bool]]) -> tuple[int, list[Any]]:
    """Each replica goes through a script of its own, as many steps long as the others'."""
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(parallel)
    found = []
    for of_replicas, sampling, horizon, flies in cases:
        sampler = Sampler(model, here, sampling, EOS, decode)
        sampler.horizon, sampler.runner.flies = horizon, flies
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


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["dp2", "tp2", "ep2", "pp2"])
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=st.lists(st.tuples(st.builds(as_long, scripts, scripts), limits, st.sampled_from([1, 3]), st.booleans()),
                      min_size=2, max_size=2))  # fmt: skip
def test_nor_does_the_layout(run_on: Any, alone: list[Any], layout: str, cases: list[Any]) -> None:
    """The leader of each replica brings its requests; the other ranks learn of them, and get the same answers."""
    processes, parallel = LAYOUTS[layout]
    if layout == "pp2":  # one pass through a pipeline cannot feed itself
        cases = [(each, sampling, 1, flies) for each, sampling, _, flies in cases]
    answers = run_on(processes, driven, parallel, cases)
    for _, found in answers:
        for finished, brought, _, _ in found:
            check_alone(finished, brought, alone)
    if layout in ("tp2", "pp2"):
        assert [found[0] for found in answers[0][1]] == [found[0] for found in answers[1][1]]
