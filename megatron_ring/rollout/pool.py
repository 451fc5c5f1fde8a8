"""Prompts whose responses are not all finished: what C3PO++ takes from one step into the next."""

from __future__ import annotations

import dataclasses
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_ring.data.prompts import StreamPrompt
from megatron_ring.rollout.records import ScoredRollout
from megatron_ring.rollout.sampling import OpenRollout


@dataclass
class Group:
    """The responses to one prompt, by sample."""

    prompt: StreamPrompt
    open: list[OpenRollout] = field(default_factory=list)
    finished: list[ScoredRollout] = field(default_factory=list)


class RolloutPool:
    """Groups in the order of their prompts; the same on every rank, but for the tokens of responses that others hold."""

    def __init__(self) -> None:
        self.groups: dict[int, Group] = {}  # by the prompt's position in the stream

    def __len__(self) -> int:
        return len(self.groups)

    def add(self, opened: Sequence[OpenRollout]) -> None:
        """Take in responses to new prompts."""
        for item in opened:
            self.groups.setdefault(item.prompt.position, Group(item.prompt)).open.append(item)

    @property
    def open(self) -> list[OpenRollout]:
        """All responses that are not finished, by prompt and sample."""
        return [item for group in self.groups.values() for item in group.open]

    @property
    def finished(self) -> list[ScoredRollout]:
        """All responses that wait for others of their group."""
        return [item for group in self.groups.values() for item in group.finished]

    def held_tokens(self) -> dict[int, int]:
        """Tokens of finished responses, by the prompt's position."""
        return {
            position: sum(item.rollout.response_length for item in group.finished) for position, group in self.groups.items()
        }

    def set_open(self, unfinished: Sequence[OpenRollout]) -> None:
        """What sampling left of `open`; `finish` is to get the others."""
        for group in self.groups.values():
            group.open = []
        for item in unfinished:
            self.groups[item.prompt.position].open.append(item)

    def finish(self, scored: Sequence[ScoredRollout]) -> None:
        """Responses that are finished."""
        for one in scored:
            insort(self.groups[one.rollout.prompt_index].finished, one, key=lambda other: other.rollout.sample)

    def take_whole(self) -> list[Group]:
        """Remove the groups without an open response."""
        whole = [group for group in self.groups.values() if not group.open]
        self.groups = {position: group for position, group in self.groups.items() if group.open}
        return whole

    def count_cut(self, max_cuts: int) -> tuple[int, int]:
        """The weights change: count one more cut for each response that was begun, and drop those with more than `max_cuts`.
        A group goes on with what it has left, or is dropped when that is less than two responses. Returns the responses that
        were dropped and their tokens."""
        dropped: list[int] = []
        for position, group in list(self.groups.items()):
            counted = [dataclasses.replace(item, cuts=item.cuts + (item.length > 0)) for item in group.open]
            group.open = [item for item in counted if item.cuts <= max_cuts]
            dropped += [item.length for item in counted if item.cuts > max_cuts]
            if len(group.open) + len(group.finished) < 2:
                dropped += [item.length for item in group.open]
                dropped += [item.rollout.response_length for item in group.finished]
                del self.groups[position]
        return len(dropped), sum(dropped)
