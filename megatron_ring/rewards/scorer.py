"""What training, evaluation and `tools/score.py` score with: a pool, and compositions for the domains that have one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.composition import Composition, combine, part_reference, part_requests, read_compositions
from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.lane import UNSCORED
from megatron_ring.rewards.pool import RewardPool
from megatron_ring.rewards.registry import verifier_for


@dataclass(frozen=True)
class PendingReward:
    """The promise of one reward; `result()` waits for it. Raises what the pool's futures do.

    A reward of which any part is without a verdict says so in its own detail, as the pool's do.
    """

    composition: Composition | None
    parts: Mapping[str, Future[Reward]]
    length: int | None

    def result(self) -> Reward:
        rewards = {name: future.result() for name, future in self.parts.items()}
        if self.composition is None:
            return rewards[""]
        total = combine(self.composition, rewards, self.length)
        failures = [reward.detail[UNSCORED] for reward in rewards.values() if UNSCORED in reward.detail]
        return replace(total, detail={**total.detail, UNSCORED: failures[0]}) if failures else total


class Scorer:
    """Scores a response by the composition of its domain, or by the verifier of that name; a context manager.

    Args:
        pool: closed with it.
        compositions: a JSON file, see `composition`; None for verifiers alone.

    Raises:
        UserError: the file cannot be read or is malformed.
    """

    def __init__(self, pool: RewardPool, compositions: Path | None = None) -> None:
        self._pool = pool
        self._compositions = {} if compositions is None else read_compositions(compositions)

    def start(self, domains: Iterable[str]) -> None:
        """Check that all these domains can be scored here, and start their workers.

        Raises:
            UserError: an unknown domain, or what a verifier lacks on this machine.
        """
        self._pool.start({name for domain in domains for name in verifiers_of(domain, self._compositions)})

    def check(self, domain: str) -> None:
        """Raise `UserError` for a domain that has neither a composition nor a verifier."""
        verifiers_of(domain, self._compositions)

    def submit(self, request: ScoreRequest) -> PendingReward:
        """Start scoring. Raises what `RewardPool.submit` does, and `UserError` for an answer that lacks a part's."""
        composition = self._compositions.get(request.domain)
        if composition is None:
            return PendingReward(None, {"": self._pool.submit(request)}, None)
        if composition.length is not None and request.length is None:
            raise UserError(f"domain {request.domain!r} limits the response's length: give 'length' in tokens")
        requests = part_requests(composition, request)
        parts = {name: self._pool.submit(part) for name, part in requests.items()}
        return PendingReward(composition, parts, request.length)

    def score(self, requests: Iterable[ScoreRequest], on_progress: Callable[[int], None] | None = None) -> list[Reward]:
        """Score responses and wait; rewards in the order of the requests. `on_progress` is told how many are there."""
        rewards = []
        for pending in [self.submit(request) for request in requests]:
            rewards.append(pending.result())
            if on_progress is not None:
                on_progress(len(rewards))
        return rewards

    @property
    def machine_failures(self) -> int:
        """Verdicts that are missing so far because of the machine."""
        return self._pool.machine_failures

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def verifiers_of(domain: str, compositions: Mapping[str, Composition]) -> list[str]:
    """The verifiers that score a domain. Raises `UserError` for one that has neither a composition nor a verifier."""
    composition = compositions.get(domain)
    if composition is not None:
        return [part.domain for part in (*composition.parts, *composition.gates)]
    if compositions:
        try:
            verifier_for(domain)
        except UserError as error:
            said = f"{error}, or a domain of --compositions ({', '.join(sorted(compositions))})"
            raise UserError(said) from None
    verifier_for(domain)
    return [domain]


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
        check = verifier_for(domain).check_reference
        if check is not None:
            check(answer)
        return
    for part in (*composition.parts, *composition.gates):
        reference, check = part_reference(part, domain, answer), verifier_for(part.domain).check_reference
        try:
            if check is not None:
                check(reference)
        except UserError as error:
            raise UserError(f"{part.name}: {error}") from None
