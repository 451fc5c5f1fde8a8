"""What the tensors of a cache would hold, for the scheduler's tests: each position of each page has the tokens up to it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from copy import copy

from megatron_ring.sampler.requests import GenerationRequest, Sampled, Sequence
from megatron_ring.sampler.scheduler import Scheduler, Step

EOS = 0


def drawn(sequence: Sequence) -> Sampled:
    """A token that depends on the request's seed and the position alone."""
    token = random.Random(f"{sequence.request.seed} {len(sequence.tokens)}").randrange(12)
    return Sampled(([token], [-0.5 * token], [-0.25 * token], [0.1 * token]), [])


def stop(sequence: Sequence) -> str | None:
    if sequence.tokens[-1] == EOS:
        return "stop"
    return "length" if len(sequence.tokens) >= sequence.request.max_new_tokens else None


def advance(scheduler: Scheduler, step: Step, sampled: Iterable[Sampled]) -> list[Sequence]:
    """Launch and land a step with nothing beside it."""
    scheduler.launched(step, step.horizon)
    return scheduler.landed(zip(step.decoding, sampled, strict=True), scheduler.version)


def expected(request: GenerationRequest) -> list[int]:
    """The response alone."""
    scheduler = Scheduler(pages=99, page_size=4, max_batch=1, prefill_tokens=99, stop=stop)
    sequence = scheduler.add(0, request)
    while scheduler.has_work:
        step = scheduler.plan()
        advance(scheduler, step, [drawn(sequence) for sequence in step.decoding])
    return list(sequence.tokens)


class SimulatedCache:
    """What the tensors of a cache would hold: for each slot of each page, the token there and all before it. A device does
    what it is asked for in order, so that a step may be run as soon as it is launched."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.pages: dict[int, list[tuple[int, ...]]] = {}
        self.table: dict[tuple[int, int], int] = {}
        self.rows: dict[int, Sequence] = {}  # those decoded last, as the device knows them

    def run(self, step: Step) -> None:
        assert len({s.row for s in step.decoding} | {c.sequence.row for c in step.chunks}) == len(step.decoding) + len(
            step.chunks
        )
        copied = {target: list(self.pages[source]) for target, source in step.copies.items()}
        self.pages |= copied
        for row, column, page in step.table:
            self.table[row, column] = page
        for chunk in step.chunks:
            self.feed(chunk.sequence, chunk.start, chunk.sequence.slice(chunk.start, chunk.count))
        for sequence in step.decoding:
            known = self.known(sequence)
            self.feed(known, sequence.cached, [known.last_token])

    def known(self, sequence: Sequence) -> Sequence:
        """The sequence with its tokens that are in the air."""
        if sequence.flying:
            known = self.rows[sequence.index]
            known.row, known.pages, known.writable = sequence.row, sequence.pages, sequence.writable
            assert list(known.tokens[: len(sequence.tokens)]) == list(sequence.tokens)
        else:
            known = self.rows[sequence.index] = copy(sequence)
            known.columns, known.versions = [column[:] for column in sequence.columns], []
        assert known.length == sequence.length + sequence.flying == sequence.cached + 1
        return known

    def feed(self, sequence: Sequence, start: int, tokens: list[int]) -> None:
        whole = (*sequence.request.prompt_tokens, *sequence.tokens)
        assert list(whole[start : start + len(tokens)]) == tokens
        for position in range(start, start + len(tokens)):
            column, offset = divmod(position, self.page_size)
            page = self.table[sequence.row, column]
            assert page > 0 and page == sequence.pages[column]
            self.pages.setdefault(page, [()] * self.page_size)[offset] = whole[: position + 1]
        for position in range(start + len(tokens)):  # what it attends to
            column, offset = divmod(position, self.page_size)
            assert self.pages[self.table[sequence.row, column]][offset] == whole[: position + 1], "foreign keys"

    def draw(self, step: Step) -> list[Sampled]:
        """The tokens of all turns of a step that is being run, each fed to the next turn, those behind an end too."""
        ahead = [self.rows[sequence.index] for sequence in step.decoding]
        found = [Sampled(([], [], [], []), []) for _ in ahead]
        for turn in range(step.horizon):
            for sequence, whole in zip(ahead, found, strict=True):
                if turn and sequence.length - 1 < sequence.writable:
                    self.feed(sequence, sequence.length - 1, [sequence.last_token])
                elif turn:
                    assert sequence.length - 1 >= sequence.limit, "no room for a token that counts"
                one = drawn(sequence)
                for column, values in zip(whole.columns, one.columns, strict=True):
                    column.extend(values)
                sequence.take(one, 0, 1)
        return found
