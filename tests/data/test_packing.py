"""Packs against a naive loop and brute force; every loss-carrying token is counted exactly once."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.data.packing import (
    MicroBatch,
    PolicyBatch,
    empty_microbatch,
    empty_policy_batch,
    pack_sequences,
    plan_packs,
    plan_rollouts,
    split_evenly,
    together,
)
from megatron_ring.data.sequences import PolicySequence, TokenSequence
from megatron_ring.errors import UserError
from tests.rollout.responses import pack_rollouts

PAD = 99
tokens = st.integers(0, 50)
token_sequences = st.lists(st.tuples(tokens, st.booleans()), min_size=1, max_size=6).map(
    lambda pairs: TokenSequence([token for token, _ in pairs], [on for _, on in pairs])
)


@st.composite
def policy_sequences(draw: st.DrawFn) -> PolicySequence:
    prompt = draw(st.lists(tokens, min_size=1, max_size=4))
    response = draw(st.lists(tokens, max_size=5))
    number = st.integers(-9, 9).map(lambda value: value / 4)
    logprobs = draw(st.lists(number, min_size=len(response), max_size=len(response)))
    return PolicySequence(prompt, response, logprobs, draw(number), draw(number), draw(st.integers(0, len(response))))


def naive(sequences: list[TokenSequence], capacity: int) -> dict[str, list[Any]]:
    """The fields of a micro-batch, one token at a time."""
    out: dict[str, list[Any]] = {field.name: [] for field in dataclasses.fields(MicroBatch)}
    out["cu_seqlens"].append(0)
    for sequence in sequences:
        for place, token in enumerate(sequence.tokens):
            last = place == len(sequence.tokens) - 1
            out["tokens"].append(token)
            out["targets"].append(PAD if last else sequence.tokens[place + 1])
            out["loss_mask"].append(False if last else bool(sequence.loss_mask[place + 1]))
            out["positions"].append(place)
            out["token_mask"].append(True)
        out["cu_seqlens"].append(len(out["tokens"]))
    for place in range(capacity - len(out["tokens"])):
        for name, value in (("tokens", PAD), ("targets", PAD), ("loss_mask", False), ("token_mask", False)):
            out[name].append(value)
        out["positions"].append(place)
    if out["cu_seqlens"][-1] != capacity:
        out["cu_seqlens"].append(capacity)
    return out


def fewest_packs(lengths: tuple[int, ...], capacity: int) -> int:
    """Try every assignment of sequences to packs."""
    for packs in range(1, len(lengths) + 1):
        for choice in itertools.product(range(packs), repeat=len(lengths)):
            loads = [0] * packs
            for pack, length in zip(choice, lengths, strict=True):
                loads[pack] += length
            if max(loads) <= capacity:
                return packs
    return 0


def first_fit_decreasing(lengths: list[int], capacity: int) -> int:
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        for pack, space in enumerate(free):
            if length <= space:
                free[pack] -= length
                break
        else:
            free.append(capacity - length)
    return len(free)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 30), max_size=60), seed=st.integers(0, 9))
def test_plans_hold_every_sequence_once(lengths: list[int], seed: int) -> None:
    plan = plan_packs(lengths, 30, seed)
    assert sorted(index for pack in plan for index in pack) == list(range(len(lengths)))
    assert all(pack and sum(lengths[index] for index in pack) <= 30 for pack in plan)
    assert plan == plan_packs(lengths, 30, seed)
    assert len(plan) == first_fit_decreasing(lengths, 30)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 10), min_size=1, max_size=6).map(tuple))
def test_plans_are_near_the_optimum(lengths: tuple[int, ...]) -> None:
    assert len(plan_packs(lengths, 10, 0)) <= 11 / 9 * fewest_packs(lengths, 10) + 6 / 9


def test_plans_scale_and_depend_on_the_seed() -> None:
    lengths = [1 + (index * 7919) % 1500 for index in range(20_000)]
    plan = plan_packs(lengths, 4096, 0)
    assert len(plan) <= sum(lengths) / 4096 * 1.01
    assert plan != plan_packs(lengths, 4096, 1)


@pytest.mark.parametrize("length", [0, 11])
def test_plans_refuse_what_does_not_fit(length: int) -> None:
    with pytest.raises(ValueError, match="sequence 1"):
        plan_packs([3, length], 10, 0)


@settings(max_examples=200, deadline=None)
@given(sequences=st.lists(token_sequences, max_size=5), room=st.integers(0, 5))
def test_packing_agrees_with_a_naive_loop(sequences: list[TokenSequence], room: int) -> None:
    capacity = sum(len(sequence.tokens) for sequence in sequences) + room or 1
    batch = pack_sequences(sequences, capacity, PAD)
    expected = naive(sequences, capacity)
    for name, values in expected.items():
        assert getattr(batch, name).tolist() == values, name
    assert batch.max_seqlen == max(b - a for a, b in itertools.pairwise(expected["cu_seqlens"]))
    dtypes = {field.name: getattr(batch, field.name).dtype for field in dataclasses.fields(MicroBatch)}
    assert dtypes == {
        "tokens": torch.int64,
        "targets": torch.int64,
        "loss_mask": torch.bool,
        "positions": torch.int64,
        "cu_seqlens": torch.int32,
        "token_mask": torch.bool,
    }


def test_packing_refuses_bad_sequences() -> None:
    with pytest.raises(ValueError, match="3 tokens do not fit"):
        pack_sequences([TokenSequence([1, 2, 3], [1, 1, 1])], 2, PAD)
    with pytest.raises(ValueError, match="sequence 0"):
        pack_sequences([TokenSequence([1, 2], [True])], 4, PAD)
    with pytest.raises(ValueError, match="sequence 0"):
        pack_sequences([TokenSequence([], [])], 4, PAD)


@settings(max_examples=200, deadline=None)
@given(items=st.lists(policy_sequences(), max_size=8), seed=st.integers(0, 3))
def test_rollouts_keep_every_trained_token_aligned(items: list[PolicySequence], seed: int) -> None:
    batches = pack_rollouts(items, 12, PAD, seed)
    found = []
    for batch in batches:
        assert batch.tokens.shape == batches[0].tokens.shape and len(batch.tokens) <= 12
        assert batch.sampler_logprobs.dtype == torch.float32
        off = ~batch.loss_mask
        for field in (batch.sampler_logprobs, batch.advantages, batch.weights):
            assert not field[off].any()
        bounds = batch.cu_seqlens.tolist()
        for start, end in itertools.pairwise(bounds):
            if not batch.token_mask[start]:
                continue
            inside = slice(start, end)
            mask = batch.loss_mask[inside]
            found.append(
                (
                    batch.tokens[inside].tolist(),
                    batch.targets[inside][mask].tolist(),
                    batch.positions[inside][mask].tolist(),
                    batch.sampler_logprobs[inside][mask].tolist(),
                    sorted(set(batch.advantages[inside][mask].tolist())),
                    sorted(set(batch.weights[inside][mask].tolist())),
                )
            )
    expected = []
    for item in items:
        if not item.trained:
            continue
        kept = list(item.response_tokens[: item.trained])
        first = len(item.prompt_tokens) - 1
        expected.append(
            (
                [*item.prompt_tokens, *kept],
                kept,
                list(range(first, first + item.trained)),
                list(item.sampler_logprobs[: item.trained]),
                [item.advantage],
                [item.weight],
            )
        )
    assert sorted(found) == sorted(expected)
    assert sum(int(batch.loss_mask.sum()) for batch in batches) == sum(item.trained for item in items)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), max_size=80), parts=st.integers(1, 4), multiple=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 3),
)  # fmt: skip
def test_micro_batches_of_rollouts_are_few_and_no_larger_than_they_must(
    lengths: list[int], parts: int, multiple: int, seed: int
) -> None:
    capacity = 512
    plans, tokens = plan_rollouts(lengths, capacity, seed, parts, multiple)
    assert (plans, tokens) == plan_rollouts(lengths, capacity, seed, parts, multiple)
    assert 0 < tokens <= capacity and tokens % multiple == 0
    packs = [pack for part in plans for pack in part]
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in pack) <= tokens for pack in packs)
    few = max(1, -(-len(plan_packs(lengths, capacity, seed)) // parts))
    assert [len(part) for part in plans] == [few] * parts  # never more passes than full ones would take


def test_a_last_micro_batch_is_not_left_half_empty() -> None:
    lengths = [
        90 + index % 13 for index in range(1024)
    ]  # 98,265 tokens: two micro-batches of 65,536, a quarter of it padding
    plans, tokens = plan_rollouts(lengths, 65_536)
    assert len(plans[0]) == 2 and sum(lengths) / (2 * tokens) > 0.97


def test_rollouts_that_are_too_long_or_inconsistent() -> None:
    with pytest.raises(UserError, match="a rollout of 6 tokens does not fit micro-batches of 5"):
        plan_rollouts([3, 6], 5)
    cut = PolicySequence([1, 2], [1, 2, 3, 4], [0.0] * 4, 1.0, 1.0, 3)
    assert pack_rollouts([cut], 5, PAD)[0].tokens.tolist() == [1, 2, 1, 2, 3]
    with pytest.raises(ValueError, match="1 log-probs for 2"):
        PolicySequence([1], [1, 2], [0.0], 1.0, 1.0, 1)
    with pytest.raises(ValueError, match="trained=3"):
        PolicySequence([1], [1, 2], [0.0, 0.0], 1.0, 1.0, 3)
    with pytest.raises(ValueError, match="needs a prompt"):
        PolicySequence([], [1], [0.0], 1.0, 1.0, 1)
    with pytest.raises(ValueError, match="begin=3"):
        PolicySequence([1], [1, 2, 3], [0.0] * 3, 1.0, 1.0, 2, begin=3)


def test_what_another_update_trains_is_context() -> None:
    sequence = PolicySequence([7, 8], [1, 2, 3, 4], [-1.0, -2.0, -3.0, -4.0], 0.5, 2.0, trained=3, begin=1)
    batch = pack_rollouts([sequence], 8, PAD)[0]
    assert batch.tokens.tolist() == [7, 8, 1, 2, 3] and sequence.length == 5
    assert batch.loss_mask.tolist() == [False, False, True, True, False]
    assert batch.targets[batch.loss_mask].tolist() == [2, 3]
    assert batch.sampler_logprobs.tolist() == [0, 0, -2, -3, 0]
    assert batch.weights.tolist() == [0, 0, 2, 2, 0] and batch.advantages[2:4].tolist() == [0.5, 0.5]


def test_empty_batches_carry_no_loss() -> None:
    for batch in (empty_microbatch(8, PAD), empty_policy_batch(8, PAD)):
        assert batch.cu_seqlens.tolist() == [0, 8] and batch.max_seqlen == 8
        assert not batch.loss_mask.any() and not batch.token_mask.any()
        assert batch.tokens.tolist() == [PAD] * 8


def test_micro_batches_together() -> None:
    parts = [pack_sequences([TokenSequence([n, n + 1], [1, 1]), TokenSequence([n], [1])], 3, PAD) for n in (10, 20)]
    parts.append(pack_sequences([TokenSequence([30], [1])], 3, PAD))
    whole, empty = together([*parts, empty_microbatch(3, PAD), empty_microbatch(3, PAD)], [4, 1])
    assert whole.tokens.tolist() == [10, 11, 10, 20, 21, 20, 30, *[PAD] * 5] and not empty.token_mask.any()
    assert whole.cu_seqlens.tolist() == [0, 2, 3, 5, 6, 7, 9, 12] and whole.cu_seqlens.dtype == torch.int32
    assert whole.positions[:7].tolist() == [0, 1, 0, 0, 1, 0, 0] and whole.loss_terms == 2
    assert together(parts, [1, 1, 1]) == parts
    with pytest.raises(ValueError, match="3 micro-batches are not"):
        together(parts, [2])
    with pytest.raises(ValueError, match="tokens follow padding"):
        together(parts[::-1], [3])


def test_to_and_replace_keep_the_type() -> None:
    batch = empty_policy_batch(4, PAD)
    moved = batch.to("meta")
    assert isinstance(moved, PolicyBatch) and moved.weights.device.type == "meta" and moved.ref_logprobs is None
    assert moved.max_seqlen == 4, "known without reading the device"
    with_reference = dataclasses.replace(batch, ref_logprobs=torch.ones(4))
    assert with_reference.to("cpu").ref_logprobs is not None


@settings(deadline=None)
@given(count=st.integers(0, 20), parts=st.integers(1, 6))
def test_split_evenly(count: int, parts: int) -> None:
    packs = [pack_sequences([TokenSequence([index], [1])], 2, PAD) for index in range(count)]
    empty = empty_microbatch(2, PAD)
    shares = split_evenly(packs, parts, empty)
    assert len(shares) == parts
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) == max(1, -(-count // parts))
    dealt = [int(batch.tokens[0]) for share in shares for batch in share if batch is not empty]
    assert sorted(dealt) == list(range(count))
    with pytest.raises(ValueError, match="0 parts"):
        split_evenly(packs, 0, empty)
