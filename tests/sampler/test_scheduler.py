"""Scheduler and page pool, without tensors: a simulated cache holds, for every position of every page, the tokens up to it;
what a sequence attends to must be its own tokens, whatever is shared, copied, preempted or reused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from megatron_ring.sampler.columns import number_array
from megatron_ring.sampler.completion import Completion
from megatron_ring.sampler.pages import PagePool, pages_for
from megatron_ring.sampler.requests import GenerationRequest, Sampled, request_seed
from megatron_ring.sampler.scheduler import Scheduler
from megatron_ring.sampler.step import FILL_BESIDE, SMALL_FILL, Step
from tests.sampler.simulated_cache import EOS, SimulatedCache, advance, drawn, expected, stop

LONGEST = 14 + 9  # tokens of a prompt and of a response

limits = st.fixed_dictionaries(
    {
        "page_size": st.sampled_from([1, 2, 4, 8]),
        "more_pages": st.integers(0, 25),
        "max_batch": st.integers(1, 9),
        "prefill_tokens": st.integers(1, 30),
        "horizon": st.integers(1, 5),
        "patience": st.sampled_from([1, 4]),
        "flies": st.booleans(),
    }
)


class Sampling(RuleBasedStateMachine):
    """Steps of a scheduler whose requests and limits are drawn, with arrivals, cancellations and interruptions: what is
    unfinished goes on in another scheduler with other limits, or in the same one with an empty cache. Where it flies a step
    is run before the last one has landed, if it could be as of then: what comes and goes between the two does not matter."""

    @initialize(
        prompts=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=7),
        limits=limits,
    )
    def start(self, prompts: list[tuple[int, int, int]], limits: dict[str, int]) -> None:
        self.asked: list[GenerationRequest] = []
        self.answers: dict[int, Completion] = {}  # by seed
        self.version = self.seeds = 0
        self.open([], **limits)
        for prompt, (length, samples, new) in enumerate(prompts):
            for _ in range(samples):
                self.arrive(prompt, length, new)

    def open(
        self, requests: list[GenerationRequest], page_size: int, more_pages: int, max_batch: int, prefill_tokens: int,
        horizon: int, patience: int, flies: bool,
    ) -> None:  # fmt: skip
        self.horizon, self.flies = horizon, flies
        self.air: list[tuple[Step, list[Sampled], int]] = []
        self.pages, self.oldest_waits = pages_for(LONGEST, page_size) + more_pages, 0
        self.cache = SimulatedCache(page_size)
        self.scheduler = Scheduler(
            pages=self.pages, page_size=page_size, max_batch=max_batch, prefill_tokens=prefill_tokens, stop=stop,
            may_stop=lambda s, tokens: EOS in tokens or len(s.tokens) + len(tokens) >= s.request.max_new_tokens,
            version=self.version,
        )  # fmt: skip
        self.scheduler.patience.steps = patience
        self.added = 0
        for request in requests:
            self.add(request)
        self.able = self.scheduler.may_fly()

    def add(self, request: GenerationRequest) -> None:
        self.scheduler.add(self.added, request)
        self.added += 1

    @rule(
        prompt=st.integers(0, 8), length=st.integers(1, 14), new=st.integers(1, 9), scored=st.sampled_from([None, None, 0])
    )
    def arrive(self, prompt: int, length: int, new: int, scored: int | None = None) -> None:
        """One more sample of a prompt, a new one or one that others are answering."""
        known = {request.prompt_tokens[0] - 50: len(request.prompt_tokens) for request in self.asked}
        tokens = [50 + prompt] * known.get(prompt, length)
        self.seeds += 1
        self.asked.append(GenerationRequest(tokens, request_seed(self.seeds), new, top_logprobs=scored))
        self.add(self.asked[-1])

    @rule(which=st.integers(0, 10**6))
    def cancel(self, which: int) -> None:
        """One that is running, waiting or blocked; its memory is free at once."""
        scheduler = self.scheduler
        scheduler.cancel(self.added + which)  # not there
        if scheduler.sequences:
            index, sequence = list(scheduler.sequences.items())[which % len(scheduler.sequences)]
            scheduler.cancel(index)
            scheduler.cancel(index)
            self.asked.remove(sequence.request if sequence.request in self.asked else self.first_of(sequence.request))
            self.oldest_waits = 0

    def first_of(self, request: GenerationRequest) -> GenerationRequest:
        """The request that `request` continues."""
        return next(one for one in self.asked if one.seed == request.seed)

    @rule()
    def restart(self) -> None:
        self.land_all()
        self.version += 1
        self.scheduler.version = self.version
        self.scheduler.restart()
        self.cache.pages.clear()
        self.oldest_waits = 0

    @rule(count=st.integers(1, 12))
    def steps(self, count: int) -> None:
        for _ in range(count):
            if self.scheduler.has_work:
                self.step()

    def step(self) -> None:
        scheduler = self.scheduler
        oldest = next(iter(scheduler.sequences.values()))
        before = (oldest.length, oldest.cached)
        flies, beside, preempted = self.flies and self.able, bool(self.air), scheduler.preemptions
        if flies or not beside:
            step = scheduler.plan(self.horizon, beside)
            assert step.decoding or step.chunks or beside
            left = [s.request.max_new_tokens - len(s.tokens) - s.flying for s in step.decoding]
            turns = min(self.horizon, max(1, *left)) if left else self.horizon
            assert step.horizon in (1, turns)  # below FILL_BESIDE
            assert step.horizon == 1 or not step.chunks or len(step.decoding) >= 4 * len(step.chunks)
            assert sum(chunk.count for chunk in step.chunks) <= scheduler.prefill_tokens
            assert len(scheduler.running) <= scheduler.max_batch
            assert not beside or (not step.scored and scheduler.preemptions == preempted)
            self.cache.run(step)
            self.air.append((step, self.cache.draw(step), self.version))
            scheduler.launched(step, step.horizon)
            flies = flies and not step.scored
        if len(self.air) > 1 or not flies:
            self.land()
        self.able = scheduler.may_fly()
        # The oldest advances, or waits for another to fill its prompt (at most 13 tokens), or to begin with others.
        self.oldest_waits = 0 if (oldest.length, oldest.cached) != before else self.oldest_waits + 1
        assert self.oldest_waits < (14 + scheduler.patience.steps) * (1 + self.flies)

    def land(self) -> None:
        scheduler = self.scheduler
        held = {sequence: sequence.tokens[:] for sequence in scheduler.sequences.values()}
        step, sampled, version = self.air.pop(0)
        pairs = zip(step.decoding, sampled, strict=True)
        done = scheduler.landed([pair for pair in pairs if pair[0] in held], version)
        assert all(sequence.tokens[: len(tokens)] == tokens for sequence, tokens in held.items())
        for sequence in done:
            assert sequence.request.seed not in self.answers
            self.answers[sequence.request.seed] = sequence.completion()

    def land_all(self) -> None:
        while self.air:
            self.land()

    @rule(limits=limits)
    def interrupt(self, limits: dict[str, int]) -> None:
        self.land_all()
        left = [s.request.continued(s.completion()) for s in self.scheduler.sequences.values()]
        self.version += 1
        self.open(left, **limits)

    @invariant()
    def pages_are_accounted_for(self) -> None:
        scheduler = self.scheduler
        users = [0] * (self.pages + 1)
        for holder in [*scheduler.running, *scheduler._prefixes.values()]:
            assert len(set(holder.pages)) == len(holder.pages)
            for page in holder.pages:
                users[page] += 1
        assert users[0] == 0 and users == scheduler.pool._users
        assert sorted(scheduler.pool._free) == [page for page in range(1, self.pages + 1) if users[page] == 0]
        assert scheduler.running == sorted(scheduler.running, key=lambda sequence: sequence.index)
        rows = [sequence.row for sequence in scheduler.running]
        assert len(set(rows)) == len(rows) and all(0 <= row < scheduler.max_batch for row in rows)
        waiting = [s for s in scheduler.sequences.values() if s not in scheduler.running]
        assert all(s.row == -1 and not s.pages and s.cached == 0 for s in waiting)
        blocked = [s for prefix in scheduler._prefixes.values() for s in prefix.blocked]
        assert len(blocked) == scheduler._blocked and {s for _, s in scheduler._waiting} | set(blocked) == set(waiting)
        assert {id(s.prefix) for s in scheduler.sequences.values()} == {id(p) for p in scheduler._prefixes.values()}

    def teardown(self) -> None:
        for _ in range(5000):
            if not self.scheduler.has_work:
                break
            self.step()
            self.pages_are_accounted_for()
        scheduler = self.scheduler
        assert scheduler.pool.free == self.pages and len(scheduler._rows) == scheduler.max_batch
        assert not (scheduler.running or scheduler.sequences or scheduler._prefixes or scheduler._waiting)
        assert self.answers.keys() >= {request.seed for request in self.asked}
        for request in self.asked:
            answer = self.answers[request.seed]
            assert list(answer.tokens) == expected(request)
            assert answer.logprobs == number_array(-0.5 * token for token in answer.tokens)
            assert answer.processed_logprobs == number_array(-0.25 * token for token in answer.tokens)
            assert answer.entropies == number_array(0.1 * token for token in answer.tokens)
            assert sum(count for _, count in answer.versions) == len(answer.tokens)
            assert answer.versions == sorted(answer.versions) and answer.finish_reason is not None


TestSampling = Sampling.TestCase
TestSampling.settings = settings(max_examples=120, stateful_step_count=5, deadline=None)


def of(requests: list[GenerationRequest], **limits: Any) -> Scheduler:
    scheduler = Scheduler(**limits)
    for index, request in enumerate(requests):
        scheduler.add(index, request)
    return scheduler


def run(scheduler: Scheduler) -> None:
    cache = SimulatedCache(scheduler.page_size)
    while scheduler.has_work:
        step = scheduler.plan()
        cache.run(step)
        advance(scheduler, step, [drawn(sequence) for sequence in step.decoding])


@pytest.mark.parametrize("samples", [2, 16])
def test_the_samples_of_a_prompt_share_one_prefill(samples: int) -> None:
    requests = [GenerationRequest([60 + i] * 23, request_seed(i, k), 9) for i in range(3) for k in range(samples)]
    scheduler = of(requests, pages=400, page_size=4, max_batch=5, prefill_tokens=10, stop=stop)
    run(scheduler)
    assert scheduler.filled == 3 * 22 and scheduler.preemptions == 0


def test_full_pages_are_shared_and_the_last_is_copied() -> None:
    requests = [GenerationRequest([7] * 11, request_seed(k), 3) for k in range(4)]
    scheduler = of(requests, pages=40, page_size=4, max_batch=4, prefill_tokens=99, stop=lambda _: None)
    advance(scheduler, scheduler.plan(), [])
    step = scheduler.plan()  # 10 shared tokens: two whole pages and half of a third
    assert len(step.decoding) == 4 and len(step.copies) == 4
    first = {tuple(sequence.pages[:2]) for sequence in step.decoding}
    assert len(first) == 1 and len({sequence.pages[2] for sequence in step.decoding}) == 4
    assert scheduler.pool.free == 40 - 2 - 1 - 4


@pytest.mark.parametrize(
    ("decoding", "prompt", "samples", "horizon"),
    [(8, 9, 2, FILL_BESIDE), (8, 9, 3, 1), (3, 9, 1, 1), (8, SMALL_FILL + 2, 1, 1), (8, SMALL_FILL + 1, 1, FILL_BESIDE)],
)
def test_many_decode_on_beside_a_small_fill(decoding: int, prompt: int, samples: int, horizon: int) -> None:
    """Samples of the prompt that is filled wait as well."""
    requests = [GenerationRequest([i + 1] * 5, request_seed(i), 99) for i in range(decoding)]
    scheduler = of(requests, pages=4000, page_size=4, max_batch=99, prefill_tokens=9999, stop=lambda _: None)
    advance(scheduler, scheduler.plan(16), [])
    assert scheduler.plan(16).horizon == 16
    for k in range(samples):
        scheduler.add(decoding + k, GenerationRequest([77] * prompt, request_seed(decoding, k), 99))
    step = scheduler.plan(16)
    assert step.horizon == horizon and len(step.decoding) == decoding and len(step.chunks) == 1


def test_prompts_begin_together() -> None:
    """Patience makes fewer fills, and never leaves more rows free than an eighth while others wait for them."""
    requests = [GenerationRequest([i + 1] * 5, request_seed(i), 20 + i % 41) for i in range(600)]
    ends = lambda s: "length" if len(s.tokens) >= s.longest else None  # noqa: E731
    fills, answers = {}, {}
    for patience in (1, 4):
        scheduler = of(requests, pages=9000, page_size=4, max_batch=64, prefill_tokens=9999, stop=ends)
        scheduler.patience.steps, cache = patience, SimulatedCache(4)
        while scheduler.has_work:
            step = scheduler.plan()
            assert len(scheduler.running) > 64 - 8 or len(scheduler.running) == len(scheduler.sequences)
            cache.run(step)
            done = advance(scheduler, step, [drawn(sequence) for sequence in step.decoding])
            fills[patience] = fills.get(patience, 0) + bool(step.chunks)
            answers |= {(patience, sequence.index): sequence.tokens for sequence in done}
    assert fills[4] < 0.5 * fills[1]
    assert all(answers[1, i] == answers[4, i] and len(answers[1, i]) == r.max_new_tokens for i, r in enumerate(requests))


def test_what_is_scored_waits_until_the_step_before_has_landed() -> None:
    """Its logits are looked at in each pass, in which nothing else may be in the air."""
    scheduler = of([GenerationRequest([5], 0, 9)], pages=9, page_size=4, max_batch=3, prefill_tokens=9, stop=lambda _: None)
    assert scheduler.may_fly()
    step = scheduler.plan()
    scheduler.launched(step, 1)
    scheduler.add(1, GenerationRequest([6], 1, 9))
    scheduler.add(2, GenerationRequest([7], 2, 9, top_logprobs=0))
    assert [sequence.index for sequence in scheduler.plan(beside=True).decoding] == [0, 1]
    assert not scheduler.may_fly()
    scheduler.landed([(step.decoding[0], drawn(step.decoding[0]))], 0)
    assert [sequence.index for sequence in scheduler.plan().decoding] == [0, 1, 2]


def test_the_youngest_makes_room_and_loses_nothing() -> None:
    requests = [GenerationRequest([i + 1] * 4, request_seed(i), 12) for i in range(3)]
    never = lambda s: "length" if len(s.tokens) >= 12 else None  # noqa: E731
    scheduler = of(requests, pages=9, page_size=2, max_batch=3, prefill_tokens=99, stop=never)
    order, sequences = [], list(scheduler.sequences.values())
    while scheduler.has_work:
        step = scheduler.plan()
        before = [sequence.tokens[:] for sequence in sequences]
        order += [s.index for s in advance(scheduler, step, [drawn(sequence) for sequence in step.decoding])]
        for sequence, held in zip(sequences, before, strict=True):
            assert sequence.tokens[: len(held)] == held
    assert scheduler.preemptions > 0 and order == [0, 1, 2]
    assert all(len(sequence.tokens) == 12 for sequence in sequences)


@pytest.mark.parametrize("version", [4, 5])
def test_spans_of_one_version_are_one(version: int) -> None:
    begun = Completion(tokens=[5], logprobs=[-1.0], processed_logprobs=[-1.0], entropies=[0.1], versions=[[4, 1]])
    request = GenerationRequest([1], 0, 9, begun)
    scheduler = of([request], pages=9, page_size=4, max_batch=1, prefill_tokens=9, stop=stop, version=version)
    advance(scheduler, scheduler.plan(), [])
    step = scheduler.plan()
    advance(scheduler, step, [Sampled(([7], [-2.0], [-2.0], [0.2]), [])])
    assert scheduler.sequences[0].completion().versions == ([[4, 2]] if version == 4 else [[4, 1], [5, 1]])
    assert request.begun.versions == [[4, 1]]


def test_a_sample_that_comes_later_shares_what_is_filled() -> None:
    """Of one that is decoding its last page behind the prompt, of one that is still filling, and not of one that is gone."""
    scheduler = of([], pages=40, page_size=4, max_batch=4, prefill_tokens=5, stop=lambda _: None)
    cache = SimulatedCache(4)

    def steps(count: int) -> None:
        for _ in range(count):
            step = scheduler.plan()
            cache.run(step)
            advance(scheduler, step, [drawn(sequence) for sequence in step.decoding])

    scheduler.add(0, GenerationRequest([7] * 11, 0, 20))
    steps(1)  # 5 of 10 tokens are filled
    scheduler.add(1, GenerationRequest([7] * 11, 1, 20))
    steps(1)
    assert scheduler.filled == 10
    steps(3)
    scheduler.add(2, GenerationRequest([7] * 11, 2, 20))
    steps(2)
    first, second, third = scheduler.sequences.values()
    assert scheduler.filled == 10 and first.pages[:2] == second.pages[:2] == third.pages[:2] and len(third.tokens) == 2
    assert len({first.pages[2], second.pages[2], third.pages[2]}) == 3
    for index in range(3):
        scheduler.cancel(index)
    assert scheduler.pool.free == 40 and not scheduler._prefixes
    scheduler.add(3, GenerationRequest([7] * 11, 3, 20))
    steps(2)
    assert scheduler.filled == 20


def test_a_page_is_never_given_twice() -> None:
    pool = PagePool(3)
    pages = [pool.take() for _ in range(3)]
    assert sorted(pages) == [1, 2, 3] and pool.free == 0
    with pytest.raises(IndexError):
        pool.take()
    pool.share(pages[:1])
    pool.release(pages)
    assert pool.free == 2 and not pool.is_shared(pages[0])
    pool.release(pages[:1])
    with pytest.raises(AssertionError, match="free already"):
        pool.release(pages[:1])


def test_seeds_differ_and_are_stable() -> None:
    seeds = {request_seed(run, prompt, sample) for run in range(3) for prompt in range(20) for sample in range(20)}
    assert len(seeds) == 3 * 20 * 20 and all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(1, 2, 3) == request_seed(1, 2, 3) != request_seed(1, 23)
