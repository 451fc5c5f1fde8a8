"""Pack sequences of any length into micro-batches of exactly `capacity` tokens.

Every micro-batch of a step has the same number of tokens, so every rank costs the same. Sequences in one micro-batch do
not see each other: `cu_seqlens` marks their borders and `positions` restart. What is left over is padding, a last
segment of its own.

Legend: T = capacity (tokens of a micro-batch), S = segments in it, padding included.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from megatron_ring.data.sequences import PolicySequence, TokenSequence
from megatron_ring.errors import UserError
from megatron_ring.parallel.device import moved_to

_Batch = TypeVar("_Batch", bound="MicroBatch")
_Pack = TypeVar("_Pack")

EVEN_STEPS = 64  # sizes below its capacity that a micro-batch of rollouts may have
EVEN_TRIALS = 8  # so many of them, from the smallest that could do, are tried


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """T packed tokens in S segments. Per-token fields are aligned to the position that predicts the target."""

    tokens: Tensor  # int64 [T]
    targets: Tensor  # int64 [T], the next token of the same segment; pad where there is none
    loss_mask: Tensor  # bool [T], true where the target counts in the loss
    positions: Tensor  # int64 [T], restart at 0 in every segment
    cu_seqlens: Tensor  # int32 [S+1], from 0 to T
    token_mask: Tensor  # bool [T], false on padding

    @cached_property
    def max_seqlen(self) -> int:
        """Length (tokens) of the longest segment, padding included. Known before `to`, so it costs no device sync."""
        return int(self.cu_seqlens.diff().max())

    @property
    def loss_terms(self) -> int:
        """How many terms the loss is a mean of: its tokens that count. Known on the host before `to`."""
        return int(self.loss_mask.sum())

    def at(self: _Batch, index: Tensor | slice) -> _Batch:
        """The per-token fields of some tokens (int64 [n], or a slice), for losses; of which segment they are is lost."""
        fields: dict[str, Any] = {name: value if value is None else value[index] for name, value in _tokens(self)}
        return type(self)(**fields, cu_seqlens=self.cu_seqlens[:0])

    def to(self: _Batch, device: torch.device | str) -> _Batch:
        """The same micro-batch on a device."""
        fields: dict[str, Any] = {name: value if value is None else moved_to(value, device) for name, value in _fields(self)}
        moved = type(self)(**fields)
        moved.__dict__["max_seqlen"] = self.max_seqlen
        return moved


@dataclass(frozen=True, eq=False)
class PolicyBatch(MicroBatch):
    """A micro-batch of rollouts. The policy fields are 0 where `loss_mask` is false.

    Packing leaves the fields behind `weights` None; passes over the packed batch add them with `dataclasses.replace`.
    """

    sampler_logprobs: Tensor  # fp32 [T], natural log, as the sampler recorded them
    advantages: Tensor  # fp32 [T]
    weights: Tensor  # fp32 [T]
    old_logprobs: Tensor | None = None  # fp32 [T], recomputed before the update; None: the sampler's serve
    ref_logprobs: Tensor | None = None  # fp32 [T]
    sequence_log_ratio: Tensor | None = None  # fp32 [T], the same for all trained tokens of a response
    corrections: Tensor | None = None  # fp32 [T], weight of the surrogate for the sampler/trainer mismatch
    routes: Tensor | None = None  # uint8 or int16 [T, MoE layers of the stage, k], the sampler's experts where loss_mask


def plan_packs(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Put sequences into as few packs as first-fit-decreasing finds; return the indices in each pack.

    At most 11/9 of the optimum plus one pack, in O(n log n). `seed` breaks ties between equal lengths and orders the
    packs. Raises `ValueError` for a length outside 1 to `capacity` tokens: what is too long is the caller's decision.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"sequence {index} has {length} tokens: packs hold 1 to {capacity}")
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order.sort(key=lambda index: -lengths[index])

    # A tree over all packs that could be opened; a node holds the largest free space below it.
    leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    free = [capacity] * (2 * leaves)
    packs: list[list[int]] = []
    for index in order:
        node = 1
        while node < leaves:
            node *= 2
            if free[node] < lengths[index]:
                node += 1
        if node - leaves == len(packs):
            packs.append([])
        packs[node - leaves].append(index)
        free[node] -= lengths[index]
        while node > 1:
            node //= 2
            free[node] = max(free[2 * node], free[2 * node + 1])
    rng.shuffle(packs)
    return packs


def pack_sequences(sequences: Sequence[TokenSequence], capacity: int, pad_id: int) -> MicroBatch:
    """Lay sequences one after another into one micro-batch of `capacity` tokens; the rest is padding.

    A token counts in the loss when the sequence's `loss_mask` says so and a token of its sequence precedes it.
    Raises `ValueError` for an empty sequence, a mask of another length, or more than `capacity` tokens.
    """
    lengths = [len(sequence.tokens) for sequence in sequences]
    for index, sequence in enumerate(sequences):
        if not lengths[index] or len(sequence.loss_mask) != lengths[index]:
            raise ValueError(
                f"sequence {index} has {lengths[index]} tokens and {len(sequence.loss_mask)} mask values: one or more, "
                f"as many of each"
            )
    used = sum(lengths)
    if capacity < 1 or used > capacity:
        raise ValueError(f"{used} tokens do not fit a micro-batch of {capacity}")

    tokens = torch.full((capacity,), pad_id, dtype=torch.int64)
    targets = torch.full((capacity,), pad_id, dtype=torch.int64)
    loss_mask = torch.zeros(capacity, dtype=torch.bool)
    bounds = [0, *itertools.accumulate(lengths)]
    if used:  # all sequences at once: short ones are many
        tokens[:used] = torch.from_numpy(np.concatenate([np.asarray(one.tokens, np.int64) for one in sequences]))
        counted = torch.from_numpy(np.concatenate([np.asarray(one.loss_mask, np.bool_) for one in sequences]))
        targets[: used - 1], loss_mask[: used - 1] = tokens[1:used], counted[1:]
        ends = torch.tensor(bounds[1:]) - 1  # nothing of their own follows
        targets[ends], loss_mask[ends] = pad_id, False
    if used < capacity:
        bounds.append(capacity)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    starts = torch.repeat_interleave(cu_seqlens[:-1].long(), cu_seqlens.diff().long())
    place = torch.arange(capacity)
    return MicroBatch(tokens, targets, loss_mask, place - starts, cu_seqlens, place < used)


def together(batches: Sequence[MicroBatch], sizes: Sequence[int]) -> list[MicroBatch]:
    """Micro-batches laid one after another, so many in each. Raises `ValueError` where there are not as many, or tokens
    would follow padding."""
    if sum(sizes) != len(batches):
        raise ValueError(f"{len(batches)} micro-batches are not {sizes} together")
    rest = iter(batches)
    return [_joined(list(itertools.islice(rest, size))) for size in sizes]


def _joined(batches: Sequence[MicroBatch]) -> MicroBatch:
    if len(batches) == 1:
        return batches[0]
    fields = {name: torch.cat([getattr(batch, name) for batch in batches]) for name, _ in _tokens(batches[0])}
    if bool(fields["token_mask"].diff().logical_and(fields["token_mask"][1:]).any()):
        raise ValueError("tokens follow padding")
    bounds, first = [torch.zeros(1, dtype=torch.int32)], 0
    for batch in batches:
        bounds.append(batch.cu_seqlens[1:] + first)
        first += batch.tokens.numel()
    return MicroBatch(**fields, cu_seqlens=torch.cat(bounds))


def plan_rollouts(
    lengths: Sequence[int], capacity: int, seed: int = 0, parts: int = 1, multiple: int = 1
) -> tuple[list[list[list[int]]], int]:
    """For each of `parts` ranks the rollouts that go together into each of its micro-batches: as few micro-batches as
    `plan_packs` finds for `capacity` tokens, dealt as `split_evenly` does; and the tokens of each, no more than hold them.

    Args:
        lengths: tokens of prompt and what is trained of the response, one or more.
        multiple: a micro-batch is to have a multiple of so many tokens; `capacity` is one.

    Raises:
        UserError: a rollout is longer than `capacity` tokens.
    """
    longest = max(lengths, default=0)
    if longest > capacity:
        raise UserError(
            f"a rollout of {longest} tokens does not fit micro-batches of {capacity} tokens: raise the micro-batch "
            f"capacity, or lower the maximum length of rollouts"
        )
    packs = plan_packs(lengths, capacity, seed)
    count = max(1, -(-len(packs) // parts)) * parts
    # Packs filled one after another leave the last one half empty: as many, of fewer tokens, hold the same.
    grain = multiple * max(1, capacity // EVEN_STEPS // multiple)
    least = -(-max(longest, -(-sum(lengths) // count), 1) // grain) * grain
    for tokens in range(least, min(capacity, least + EVEN_TRIALS * grain), grain):
        even = plan_packs(lengths, tokens, seed)
        if len(even) <= count:
            return split_evenly(even, parts, []), tokens
    return split_evenly(packs, parts, []), capacity


def policy_batch(items: Sequence[PolicySequence], capacity: int, pad_id: int) -> PolicyBatch:
    """Lay rollouts one after another into one micro-batch for the policy loss; errors as of `pack_sequences`. Only the first
    `trained` response tokens of each are kept, and carry loss from `begin` on."""
    sequences = [
        TokenSequence(
            [*item.prompt_tokens, *item.response_tokens[: item.trained]],
            [False] * (len(item.prompt_tokens) + item.begin) + [True] * (item.trained - item.begin),
        )
        for item in items
    ]
    policy = torch.zeros(3, capacity, dtype=torch.float32)  # sampler log-probs, advantages, weights
    start, routes = 0, None
    if items and items[0].routes is not None:
        routes = items[0].routes.new_zeros(capacity, *items[0].routes.shape[1:])
    for item in items:
        before = start + len(item.prompt_tokens) - 1  # the last prompt token predicts the first response token
        first, last = before + item.begin, before + item.trained
        policy[0, first:last] = torch.as_tensor(item.sampler_logprobs[item.begin : item.trained], dtype=torch.float32)
        policy[1, first:last] = item.advantage
        policy[2, first:last] = item.weight
        if routes is not None and item.routes is not None:
            routes[first:last] = item.routes[item.begin : item.trained]
        start += item.length
    base = pack_sequences(sequences, capacity, pad_id)
    return PolicyBatch(
        **dict(_fields(base)), sampler_logprobs=policy[0], advantages=policy[1], weights=policy[2], routes=routes
    )


def empty_microbatch(capacity: int, pad_id: int) -> MicroBatch:
    """A micro-batch of padding only: it takes part in every collective and adds nothing to the loss."""
    return pack_sequences([], capacity, pad_id)


def empty_policy_batch(capacity: int, pad_id: int) -> PolicyBatch:
    """A policy batch of padding only."""
    return policy_batch([], capacity, pad_id)


def split_evenly(packs: Sequence[_Pack], parts: int, empty: _Pack) -> list[list[_Pack]]:
    """Deal packs to `parts` ranks in turn; every rank gets the same number, one at least, filled up with `empty`."""
    if parts < 1:
        raise ValueError(f"cannot split packs into {parts} parts")
    per_part = max(1, -(-len(packs) // parts))
    filled = [*packs, *[empty] * (per_part * parts - len(packs))]
    return [filled[part::parts] for part in range(parts)]


def _fields(batch: MicroBatch) -> list[tuple[str, Any]]:
    return [(field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch)]


def _tokens(batch: MicroBatch) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in _fields(batch) if name != "cu_seqlens"]
