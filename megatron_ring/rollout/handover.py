"""Responses from the replicas that hold their tokens to those that need them, so that no process ever has all tokens of a
step. What is small, such as lengths and what ended them, every rank knows of all."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterator, Sequence

from megatron_ring.parallel.context import ParallelContext
from megatron_ring.parallel.host_bytes import exchange_over_data
from megatron_ring.sampler.completion import Completion, number_array, token_array

WIDTH = 16  # bytes of a token, its routes apart


def hand_over(
    completions: Sequence[Completion], holders: Sequence[int], takers: Sequence[int | None], context: ParallelContext
) -> list[Completion]:
    """Give each response to the data-parallel rank that takes it. All ranks bring the same ones, each with the tokens of
    those that it holds.

    Args:
        holders, takers: data-parallel ranks, one for each response; None: nobody needs it.

    Returns:
        The responses, those that this rank takes with their tokens, the others without.
    """
    me = context.data_rank
    found = [completion.without_tokens() for completion in completions]
    sent: list[list[Completion]] = [[] for _ in range(context.data_size)]  # to each rank
    received: list[list[int]] = [[] for _ in range(context.data_size)]  # from each rank: places
    for place, (completion, holder, taker) in enumerate(zip(completions, holders, takers, strict=True)):
        if holder == taker == me:
            found[place] = completion
        elif holder == me and taker is not None:
            sent[taker].append(completion)
        elif taker == me:
            received[holder].append(place)
    if context.data_size == 1:
        return found
    data, sizes = bytearray(), []
    for share in sent:
        before = len(data)
        for completion in share:
            _append(completion, data)
        sizes.append(len(data) - before)
    parts = exchange_over_data(data, sizes)
    del data  # before what came is copied
    for places, part in zip(received, parts, strict=True):
        for place, completion in zip(places, _read(part, [found[place] for place in places]), strict=True):
            found[place] = completion
    return found


def _append(completion: Completion, data: bytearray) -> None:
    for column in (completion.tokens, completion.logprobs, completion.processed_logprobs, completion.entropies):
        data += column  # its bytes
    data += completion.routes


def _read(data: memoryview, expected: Sequence[Completion]) -> Iterator[Completion]:
    """Undo `_append` for responses of known lengths. What is left of a token's bytes are its routes."""
    tokens = sum(completion.length for completion in expected)
    routes = len(data) // tokens - WIDTH if tokens else 0
    at = 0

    def take(size: int) -> memoryview:
        nonlocal at
        at += size
        return data[at - size : at]

    def numbers(count: int) -> array[float]:
        column = number_array()
        column.frombytes(take(4 * count))
        return column

    for completion in expected:
        count, ids = completion.length, token_array()
        ids.frombytes(take(4 * count))
        logprobs, processed, entropies = numbers(count), numbers(count), numbers(count)
        yield dataclasses.replace(
            completion, tokens=ids, logprobs=logprobs, processed_logprobs=processed, entropies=entropies,
            routes=bytes(take(routes * count)),
        )  # fmt: skip
    if at != len(data):
        raise RuntimeError(f"{len(data)} bytes came for {tokens} tokens: replicas disagree on what they hold")
