"""The queue of the sampler: no tensors, so that it can be tested by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.sampler.requests import GenerationRequest, Queue, request_seed

EOS = 0


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), max_size=30),
    slots=st.integers(1, 7),
    prefill=st.integers(1, 20),
)
def test_every_request_finishes_once_and_slots_stay_dense(lengths, slots: int, prefill: int) -> None:
    """Simulates decoding: a slot's cache content is the index of the request that wrote it."""
    requests = [GenerationRequest([1] * prompt, seed=i, max_new_tokens=new) for i, (prompt, new) in enumerate(lengths)]
    queue = Queue(requests, slots, prefill)
    cache: dict[int, int] = {}
    steps = 0
    while queue.waiting or queue.active:
        steps += 1
        assert steps < 1000
        admitted = queue.admit()
        assert len(queue.active) <= slots
        tokens = [len(a.request.prompt_tokens) for a in admitted]
        assert len(tokens) <= 1 or sum(tokens) <= prefill
        for i, sequence in enumerate(admitted):
            cache[len(queue.active) - len(admitted) + i] = sequence.index
        for slot, sequence in enumerate(queue.active):
            assert cache[slot] == sequence.index
            sequence.append(7, -0.5, 0.1, EOS)
        for source, target in queue.retire():
            cache[target] = cache[source]
    results = queue.results()
    assert [len(r.tokens) for r in results] == [new for _, new in lengths]
    assert all(r.finish_reason == "length" for r in results)


def test_eos_ends_a_sequence_and_is_kept() -> None:
    queue = Queue([GenerationRequest([1, 2], seed=0, max_new_tokens=9)], slots=1, prefill_tokens=8)
    (sequence,) = queue.admit()
    assert sequence.next_position == 1
    sequence.append(5, -1.0, 0.2, EOS)
    assert sequence.next_position == 2 and sequence.finish_reason is None
    sequence.append(EOS, -0.1, 0.3, EOS)
    assert queue.retire() == []
    (result,) = queue.results()
    assert (result.tokens, result.finish_reason, result.logprobs) == ([5, EOS], "stop", [-1.0, -0.1])


def test_seeds_differ_and_are_stable() -> None:
    seeds = {request_seed(run, prompt, sample) for run in range(3) for prompt in range(20) for sample in range(20)}
    assert len(seeds) == 3 * 20 * 20 and all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(1, 2, 3) == request_seed(1, 2, 3) != request_seed(1, 23)
