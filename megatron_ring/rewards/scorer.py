"""What training, evaluation and `tools/score.py` score with: a pool, compositions for the domains that have one, and what
waits for batch scorers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.batch import BATCH_SCORERS, BatchItem, reference_check
from megatron_ring.rewards.composition import Composition, combine, read_compositions, request_of
from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.parts import Rule, Source
from megatron_ring.rewards.pool import RewardPool


@dataclass(frozen=True)
class Undecided:
    """A part whose rules are asked first: their promises, and what is asked where none decides."""

    rules: Sequence[tuple[Rule, Future[Reward]]]
    request: ScoreRequest


@dataclass
class PendingReward:
    """The promise of one reward; `result()` waits for it. Raises what the pool's futures do.

    Attributes:
        parts: by the name of part or gate; "" where nothing is composed.
        undecided: parts that no rule has decided yet; `Scorer.ask` takes them up.
        by_rule: parts that a rule has decided.
    """

    composition: Composition | None
    parts: dict[str, Future[Reward]]
    length: int | None
    place: tuple[int, int] | None = None
    undecided: dict[str, Undecided] = field(default_factory=dict)
    by_rule: set[str] = field(default_factory=set)

    def settle_rules(self) -> list[str]:
        """Wait for the rules: the names of the parts that none of them decides."""
        open_ones = []
        for name, undecided in self.undecided.items():
            for rule, promise in undecided.rules:
                reward = promise.result()
                if rule.decides(reward):
                    self.by_rule.add(name)
                    self.parts[name] = Future()
                    self.parts[name].set_result(reward)
                    break
            else:
                open_ones.append(name)
        return open_ones

    def when_done(self, tell: Callable[[], None]) -> None:
        """Have `tell` called, by any thread, once `result` need not wait; never where rules are to be settled first."""
        if self.undecided:
            return
        left = itertools.count(len(self.parts) - 1, -1)
        for future in self.parts.values():
            future.add_done_callback(lambda _: tell() if next(left) == 0 else None)

    def result(self) -> Reward:
        rewards = {name: future.result() for name, future in self.parts.items()}
        if self.composition is None:
            return rewards[""]
        return combine(self.composition, rewards, self.length, self.by_rule)


class Scorer:
    """Scores a response by the composition of its domain, or by the verifier or batch scorer of that name.

    Args:
        pool: closed with it. None in processes that only take part in batch scoring.
        compositions: a JSON file, see `composition`; None without any.

    Raises:
        UserError: the file cannot be read or is malformed.
    """

    def __init__(self, pool: RewardPool | None, compositions: Path | None = None) -> None:
        self._pool = pool
        self._compositions = {} if compositions is None else read_compositions(compositions)
        self._waiting: dict[str, list[tuple[BatchItem, Future[Reward]]]] = {}
        self.on_waiting: Mapping[str, Callable[[BatchItem], None]] = {}  # by batch scorer: told of what waits for it

    def start(self, domains: Iterable[str]) -> set[str]:
        """Check that all these domains can be scored here, and start their workers. The verifiers and batch scorers that
        they need.

        Raises:
            UserError: an unknown domain, or what a verifier lacks on this machine.
        """
        names = {name for domain in domains for name in scorers_of(domain, self._compositions)}
        if self._pool is not None:
            self._pool.start(names - BATCH_SCORERS.keys())
        return names

    def check(self, domain: str) -> None:
        """Raise `UserError` for a domain that nothing scores."""
        scorers_of(domain, self._compositions)

    def submit(self, request: ScoreRequest, place: tuple[int, int] | None = None) -> PendingReward:
        """Start scoring. `place`: group and sample of the response, for batch scorers; None where there are no groups.

        Raises:
            UserError: an answer lacks a part's, or a batch scorer has no groups; and what `RewardPool.submit` raises.
        """
        composition = self._compositions.get(request.domain)
        if composition is None:
            return PendingReward(None, {"": self._promise(request, place)}, None, place)
        if composition.length is not None and request.length is None:
            raise UserError(f"domain {request.domain!r} limits the response's length: give 'length' in tokens")
        pending = PendingReward(composition, {}, request.length, place)
        for part in (*composition.parts, *composition.gates):
            own = request_of(part.source, request)
            if not part.rules:
                pending.parts[part.name] = self._promise(own, place)
                continue
            self._check_place(own, place)
            rules = [(rule, self._promise(request_of(rule.source, request), place)) for rule in part.rules]
            pending.undecided[part.name] = Undecided(rules, own)
        return pending

    def ask(self, pending: PendingReward, names: Iterable[str]) -> None:
        """Start scoring the parts that `settle_rules` has named."""
        for name in names:
            pending.parts[name] = self._promise(pending.undecided[name].request, pending.place)

    @property
    def has_rules(self) -> bool:
        """Whether any part has rules that are asked first."""
        return any(part.rules for one in self._compositions.values() for part in (*one.parts, *one.gates))

    def _promise(self, request: ScoreRequest, place: tuple[int, int] | None) -> Future[Reward]:
        if request.domain not in BATCH_SCORERS:
            return Future() if self._pool is None else self._pool.submit(request)
        self._check_place(request, place)
        assert place is not None
        promise: Future[Reward] = Future()
        item = BatchItem(request, *place)
        self._waiting.setdefault(request.domain, []).append((item, promise))
        if request.domain in self.on_waiting:
            self.on_waiting[request.domain](item)
        return promise

    @staticmethod
    def _check_place(request: ScoreRequest, place: tuple[int, int] | None) -> None:
        if place is None and request.domain in BATCH_SCORERS:
            raise UserError(f"domain {request.domain!r} is scored with its group, in RL and evaluations alone")

    def take_waiting(self, name: str) -> list[tuple[BatchItem, Future[Reward]]]:
        """What was submitted for a batch scorer since the last call, by group and sample, with the promises to keep."""
        return sorted(self._waiting.pop(name, []), key=lambda waiting: (waiting[0].group, waiting[0].sample))

    def score(self, requests: Iterable[ScoreRequest], on_progress: Callable[[int], None] | None = None) -> list[Reward]:
        """Score responses and wait; rewards in the order of the requests. `on_progress` is told how many are there."""
        rewards = []
        for pending in [self.submit(request) for request in requests]:
            self.ask(pending, pending.settle_rules())
            rewards.append(pending.result())
            if on_progress is not None:
                on_progress(len(rewards))
        return rewards

    @property
    def machine_failures(self) -> int:
        """Verdicts that are missing so far because of the machine."""
        return 0 if self._pool is None else self._pool.machine_failures

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sources_of(composition: Composition) -> list[Source]:
    """Who scores: of parts, gates and their rules."""
    parts = (*composition.parts, *composition.gates)
    return [source for part in parts for source in (*(rule.source for rule in part.rules), part.source)]


def scorers_of(domain: str, compositions: Mapping[str, Composition]) -> list[str]:
    """The verifiers and batch scorers that score a domain. Raises `UserError` for one that nothing scores."""
    composition = compositions.get(domain)
    if composition is not None:
        return [source.domain for source in sources_of(composition)]
    try:
        reference_check(domain)
    except UserError as error:
        others = f", or a batch scorer ({', '.join(sorted(BATCH_SCORERS))})"
        if compositions:
            others += f", or a domain of --compositions ({', '.join(sorted(compositions))})"
        raise UserError(f"{error}{others}") from None
    return [domain]


def check_domain(domain: str, compositions: Mapping[str, Composition], whole_groups: bool) -> None:
    """Raise `UserError` for a domain that nothing scores, or only what compares whole groups where rounds do not have
    them."""
    for name in scorers_of(domain, compositions):
        if not whole_groups and name in BATCH_SCORERS and BATCH_SCORERS[name].whole_groups:
            raise UserError(
                f"domain {domain!r} is scored by {name!r}, which compares the responses of a group: --budget.max-cuts takes "
                f"groups apart, leave it out"
            )


def check_settings(domain: str, compositions: Mapping[str, Composition], settings: object) -> None:
    """Raise `UserError` where what scores a domain needs a setting that `settings`, a `RewardConfig`, does not give."""
    for name in scorers_of(domain, compositions):
        needs = BATCH_SCORERS[name].needs if name in BATCH_SCORERS else ()
        if needs and all(attrgetter(need)(settings) is None for need in needs):
            flags = " or ".join(f"--rewards.{need.replace('_', '-')}" for need in needs)
            raise UserError(f"domain {domain!r} is scored by {name!r}: give {flags}")


def check_answers(rows: Iterable[tuple[str, str, Any]], compositions: Mapping[str, Composition]) -> None:
    """Check rows of prompt files, (place, domain, answer) each: no response could earn a reward from an answer that its
    verifier cannot use. What a verifier cannot tell passes; nothing is scored and no process started.

    Raises:
        UserError: names the first such place; or a domain that nothing scores.
    """
    for place, domain, answer in rows:
        try:
            _check_answer(domain, answer, compositions)
        except UserError as error:
            raise UserError(f"{place}: 'answer' is of no use to domain {domain!r}: {error}") from None


def _check_answer(domain: str, answer: Any, compositions: Mapping[str, Composition]) -> None:
    composition = compositions.get(domain)
    if composition is None:
        check = reference_check(domain)
        if check is not None:
            check(answer)
        return
    for part in (*composition.parts, *composition.gates):
        for source in (*(rule.source for rule in part.rules), part.source):
            reference, check = source.reference(domain, answer), reference_check(source.domain)
            try:
                if check is not None:
                    check(reference)
            except UserError as error:
                raise UserError(f"{part.name}: {error}") from None
