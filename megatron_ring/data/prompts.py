"""The endless stream of a run's prompts: sources in fixed shares, each shuffled anew every epoch, resumed exactly."""

from __future__ import annotations

import hashlib
import heapq
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from megatron_ring.data.interleave import next_source
from megatron_ring.data.outcomes import Outcomes
from megatron_ring.data.records import PromptRecord, prompt_to_json
from megatron_ring.data.schedule import PromptSchedule
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError

LONG_PROMPTS = 64  # so many of the longest texts are made tokens, to know how long a prompt is


class StreamPrompt(NamedTuple):
    """A prompt and its place in the endless stream, counted from 0: unique over epochs."""

    position: int
    record: PromptRecord


class PromptStream:
    """Prompts by a schedule. Every epoch of a source holds each of its prompts once, or at most once when prompts are
    dropped or a curriculum chooses (see `outcomes`). What comes next depends on the seed and the state alone.

    Args:
        drop_after, curriculum_floor: as in `Outcomes`.
    """

    def __init__(
        self, schedule: PromptSchedule, seed: int, drop_after: int | None = None, curriculum_floor: float | None = None
    ) -> None:
        self._schedule, self._seed = schedule, seed
        self._fingerprint = fingerprint(schedule)
        self._position = 0
        self._turns = [0 for _ in schedule.sources]  # prompts of each source whose turn has come, skipped ones too
        self._drawn = [[0 for _ in stage.sources] for stage in schedule.stages]
        self._orders: dict[int, tuple[int, list[int]]] = {}
        self._by_id: dict[tuple[str, str], PromptRecord] = {}
        self._outcomes = [
            Outcomes(source.records, f"{seed}/{source.name}", drop_after, curriculum_floor) for source in schedule.sources
        ]

    @property
    def epochs(self) -> dict[str, float]:
        """Epochs of each source so far, as fractions, by its name."""
        sources = zip(self._schedule.sources, self._turns, strict=True)
        return {source.name: turns / len(source.records) for source, turns in sources}

    def figures(self, step: int) -> dict[str, float]:
        """For the metrics of the 0-based `step`: its stage (from 1), epochs of each source, the share
        of the stage's prompts that came from each, the share that is dropped."""
        number = self._schedule.stage_at(step)
        found: dict[str, float] = {"data/stage": number + 1}
        found |= {f"data/epoch/{name}": epoch for name, epoch in self.epochs.items()}
        dropped = sum(outcomes.dropped for outcomes in self._outcomes)
        stage, drawn = self._schedule.stages[number], self._drawn[number]
        if len(stage.sources) > 1 and any(drawn):
            names = (self._schedule.sources[source].name for source in stage.sources)
            found |= {f"data/share/{name}": count / sum(drawn) for name, count in zip(names, drawn, strict=True)}
        return found | {"data/dropped_fraction": dropped / sum(len(source.records) for source in self._schedule.sources)}

    def take(self, count: int, step: int = 0) -> list[StreamPrompt]:
        """The next `count` prompts of the stage that the 0-based `step` belongs to."""
        number = self._schedule.stage_at(step)
        stage, drawn = self._schedule.stages[number], self._drawn[number]
        taken = []
        for _ in range(count):
            chosen = next_source(stage.shares, drawn)
            drawn[chosen] += 1
            taken.append(StreamPrompt(self._position, self._next_of(stage.sources[chosen])))
            self._position += 1
        return taken

    def find(self, domain: str, prompt_id: str) -> PromptRecord:
        """The prompt of this domain and id. Raises `UserError` when there is none."""
        if not self._by_id:
            records = (record for source in self._schedule.sources for record in source.records)
            self._by_id = {(record.domain, record.id): record for record in records}
        if (domain, prompt_id) not in self._by_id:
            raise UserError(f"the prompts have none of domain {domain!r} with id {prompt_id!r}: resume with the same files")
        return self._by_id[domain, prompt_id]

    def observe(self, groups: Iterable[tuple[str, str, Sequence[float]]]) -> None:
        """Learn from groups of responses: domain and id of the prompt, and the group's rewards."""
        for domain, prompt_id, rewards in groups:
            for outcomes in self._outcomes:
                outcomes.observe(domain, prompt_id, rewards)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, in types that JSON can hold."""
        return {
            "seed": self._seed,
            "fingerprint": self._fingerprint,
            "sources": [source.name for source in self._schedule.sources],
            "position": self._position,
            "turns": list(self._turns),
            "drawn": [list(counts) for counts in self._drawn],
            "outcomes": [outcomes.state_dict() for outcomes in self._outcomes],
        }

    def load_state_dict(self, state: Mapping[str, Any], keep_place: bool = False) -> None:
        """Go on where the stream that wrote `state` stopped.

        Args:
            keep_place: know of the prompts what `state` knew, but take those that come next here: a run that goes back to an
                earlier checkpoint is to see other prompts than those after which it went back.

        Raises:
            UserError: other data or another seed.
        """
        if not {"position", "turns", "drawn", "outcomes"} <= state.keys():
            raise UserError("the saved state of the prompt stream has no position: resume from another checkpoint")
        if state.get("fingerprint") != self._fingerprint:
            raise UserError(
                f"the prompts or their stages are not those of the checkpoint (fingerprint {self._fingerprint}, saved "
                f"{state.get('fingerprint')}): resume with the same prompt and stage files, or start a new run"
            )
        names = [source.name for source in self._schedule.sources]
        if state.get("sources", names) != names:
            raise UserError(
                f"the prompt files had the names {', '.join(state['sources'])} and have {', '.join(names)}, and names "
                f"decide the order: give them the names that they had, in any folder"
            )
        if state.get("seed") != self._seed:
            raise UserError(
                f"the prompt seed is {self._seed}, the checkpoint has {state.get('seed')}: resume with the same seed"
            )
        for outcomes, known in zip(self._outcomes, state["outcomes"], strict=True):
            outcomes.load_state_dict(known)
        if not keep_place:
            self._position, self._turns = state["position"], list(state["turns"])
            self._drawn = [list(counts) for counts in state["drawn"]]

    def _next_of(self, source: int) -> PromptRecord:
        records, outcomes = self._schedule.sources[source].records, self._outcomes[source]
        outcomes.restore_if_all_dropped()
        while True:
            epoch, offset = divmod(self._turns[source], len(records))
            self._turns[source] += 1
            place = self._order(source, epoch)[offset]
            if outcomes.admits(place, epoch):
                return records[place]

    def _order(self, source: int, epoch: int) -> list[int]:
        if self._orders.get(source, (-1, []))[0] != epoch:
            order = list(range(len(self._schedule.sources[source].records)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._orders[source] = (epoch, order)
        return self._orders[source][1]


def fingerprint(schedule: PromptSchedule) -> str:
    """A hash (32 hex digits) of the prompts, their order included, and of the stages."""
    digest = hashlib.blake2b(digest_size=16)
    for source in schedule.sources:
        for record in source.records:
            digest.update(json.dumps(prompt_to_json(record), sort_keys=True).encode())
            digest.update(b"\n")
        digest.update(b"\0")
    digest.update(repr([(stage.first_step, stage.sources, stage.shares) for stage in schedule.stages]).encode())
    return digest.hexdigest()


def check_texts(records: Iterable[PromptRecord], tokenizer: RingTokenizer, instruction: str | None) -> None:
    """Raise `UserError` for a prompt that cannot be asked: it spells a control token, or is of roles that the chat template
    refuses. Names its place."""
    known: set[tuple[tuple[str, bool, bool], ...]] = set()
    for record in records:
        roles = tuple((message.role, bool(message.calls), bool(message.tools)) for message in record.messages)
        try:
            tokenizer.check_prompt(record.prompt)
            if roles not in known:
                tokenizer.prompt_tokens(record.prompt, instruction)
        except UserError as error:
            raise UserError(f"{record.place or f'prompt {record.id!r}'}: {error}") from None
        known.add(roles)


def longest_prompt(records: Sequence[PromptRecord], tokenizer: RingTokenizer, instruction: str | None) -> int:
    """Tokens of the longest prompt: of those with the most bytes of text, which one of fewer bytes hardly ever exceeds."""

    longest = heapq.nlargest(LONG_PROMPTS, records, key=lambda record: sum(_sizes(record)))
    return max((len(tokenizer.prompt_tokens(record.prompt, instruction)) for record in longest), default=1)


def _sizes(record: PromptRecord) -> list[int]:
    """Bytes of what each message says, calls, and may call."""
    return [sum(len(text.encode()) for text in (one.content, one.calls, one.tools)) for one in record.messages]


def too_long(records: Iterable[PromptRecord], tokenizer: RingTokenizer, instruction: str | None, room: int) -> str | None:
    """What there is to say of the first prompt of more than `room` tokens; None where all fit. A token is a byte of text at
    least: only long texts are made tokens."""
    spare = 1024 + len((instruction or "").encode())  # for the chat template
    for record in records:
        if sum(size + spare for size in _sizes(record)) <= room:
            continue
        tokens = len(tokenizer.prompt_tokens(record.prompt, instruction))
        if tokens > room:
            return f"prompt {record.id!r} has {tokens:,} tokens"
    return None
