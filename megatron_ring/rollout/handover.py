"""Responses from the replicas that hold their tokens to those that need them, so that no process ever has all tokens of a
step. What is small, such as lengths and what ended them, every rank knows of all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_ring.parallel.context import ParallelContext
from megatron_ring.parallel.host_bytes import exchange_over_data
from megatron_ring.sampler.columns import DRAWN, Column
from megatron_ring.sampler.completion import Completion


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
    found = []
    sent: list[list[Completion]] = [[] for _ in range(context.data_size)]  # to each rank
    received: list[list[int]] = [[] for _ in range(context.data_size)]  # from each rank: places
    for place, (completion, holder, taker) in enumerate(zip(completions, holders, takers, strict=True)):
        stays = holder == taker == me or not completion.versions  # one without tokens is the same everywhere
        found.append(completion if stays else completion.without_tokens())
        if stays:
            continue
        if holder == me and taker is not None:
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
    for column in DRAWN:
        data += getattr(completion, column.name)  # its bytes
    data += completion.routes


def _read(data: memoryview, expected: Sequence[Completion]) -> Iterator[Completion]:
    """Undo `_append` for responses of known lengths and columns. What is left of a token's bytes are its routes."""
    tokens = sum(completion.length for completion in expected)
    numbers = sum(one.length * column.itemsize for one in expected for column in _columns(one))
    routes = (len(data) - numbers) // tokens if tokens else 0
    at = 0

    def take(size: int) -> memoryview:
        nonlocal at
        at += size
        return data[at - size : at]

    for completion in expected:
        read: dict[str, Any] = {}
        for column in _columns(completion):
            read[column.name] = column.new()
            read[column.name].frombytes(take(column.itemsize * completion.length))
        yield dataclasses.replace(completion, **read, routes=bytes(take(routes * completion.length)))
    if at != len(data):
        raise RuntimeError(f"{len(data)} bytes came for {tokens} tokens: replicas disagree on what they hold")


def _columns(completion: Completion) -> list[Column]:
    """Those that each of its tokens has."""
    return [column for column in DRAWN if column.name not in completion.absent]
