"""Benchmarks over any layout: the requests of all in one queue, long ones first; responses and scores in journals."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ring.benchmarks.scoring import WAITS, Outcome, PendingOutcome, submit
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.rewards import RewardPool
from megatron_ring.rollout.journal import Journal, Key, read_journals
from megatron_ring.rollout.plans import Item, Plan, Task, plans_of
from megatron_ring.rollout.texts import opens_thinking, response_text
from megatron_ring.run.progress import Progress
from megatron_ring.sampler.completion import Completion
from megatron_ring.sampler.requests import GenerationRequest
from megatron_ring.sampler.sampler import Sampler


def run_suite(
    tasks: Sequence[Task], sampler: Sampler, tokenizer: RingTokenizer, workers: RewardPool | None, folder: Path, *,
    seed: int, instruction: str | None = None,
) -> list[Plan]:  # fmt: skip
    """Sample and score what the journals in `folder` do not hold yet, round by round where there is a budget; the plans with
    the outcomes that count, on every rank. All ranks take part.

    Args:
        workers: on the leader of each replica.

    Raises:
        UserError: on every rank.
    """
    context = sampler.context
    done, to_score = collectives.from_main(lambda: _standing(folder))
    outcomes = {key: Outcome(**row) for key, row in done.items()}
    plans = plans_of(tasks)
    progress = Progress("evaluate", 0, 0, context.is_main, unit="response")
    leader = _Leader(tokenizer, workers, progress)
    _on_leaders(context, lambda: leader.open(folder, context.data_rank))
    try:
        with progress:
            while wanted := [item for plan in plans for item in plan.wanted()]:
                lacking = [item for item in wanted if item.key not in outcomes]
                if lacking:
                    outcomes |= _round(lacking, to_score, sampler, leader, seed, instruction)
                for plan in plans:
                    plan.take(outcomes)
    finally:
        leader.close()
    return plans


def _round(
    lacking: Sequence[Item], to_score: Mapping[Key, dict[str, Any]], sampler: Sampler, leader: _Leader, seed: int,
    instruction: str | None,
) -> dict[Key, Outcome]:  # fmt: skip
    """The outcomes of these items, on every rank: sampled where `to_score` does not hold their responses, and scored."""
    context = sampler.context
    held = [(item, to_score[item.key]) for item in lacking if item.key in to_score]
    own = _share([item for item in lacking if item.key not in to_score], context)
    _on_leaders(context, lambda: leader.begin(held[context.data_rank :: context.data_size], own))
    _sample(own, sampler, leader, seed, instruction)
    _on_leaders(context, leader.finish)
    parts = collectives.gather_over_world(leader.outcomes)
    leader.outcomes = []
    return {(item.benchmark, item.id, item.sample): item for part in parts for item in part}


def _share(waiting: Sequence[Item], context: ParallelContext) -> list[Item]:
    """This replica's: whole problems, whose samples share a prompt."""
    places = {problem: place for place, problem in enumerate(dict.fromkeys(item.key[:2] for item in waiting))}
    return [item for item in waiting if places[item.key[:2]] % context.data_size == context.data_rank]


def _sample(own: Sequence[Item], sampler: Sampler, leader: _Leader, seed: int, instruction: str | None) -> None:
    """Draw the responses of this replica. All ranks take part, also those without any."""
    leads = sampler.context.leads_replica
    requests = [
        GenerationRequest(
            leader.tokenizer.prompt_tokens(item.problem.prompt, instruction), item.seed(seed),
            sampler.sampling.max_new_tokens, columns=frozenset(),
        )
        for item in own
    ]  # fmt: skip

    def take(place: int, completion: Completion) -> None:
        if leads:
            leader.take(own[place], requests[place].prompt_tokens, completion)

    sampler.generate(requests, on_finished=take)


def _standing(folder: Path) -> tuple[dict[Key, dict[str, Any]], dict[Key, dict[str, Any]]]:
    """Scores that are there, and responses that lack one. What is without a verdict is scored again."""
    responses, scores = read_journals(folder)
    scored = {key: row for key, row in scores.items() if row["score"] is not None or row["reason"] == WAITS}
    return scored, {key: row for key, row in responses.items() if key not in scored}


class _Leader:
    """What the leader of a replica does with its responses: writes them down, has them scored, says how it goes."""

    def __init__(self, tokenizer: RingTokenizer, workers: RewardPool | None, progress: Progress) -> None:
        self.tokenizer, self._workers, self._progress = tokenizer, workers, progress
        self._journal: Journal | None = None
        self._pending: list[PendingOutcome] = []
        self.outcomes: list[Outcome] = []
        self._left: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._done, self._began = 0, time.monotonic()

    def open(self, folder: Path, rank: int) -> None:
        self._journal = Journal(folder, rank).__enter__()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.__exit__(None, None, None)

    def begin(self, held: Sequence[tuple[Item, dict[str, Any]]], own: Sequence[Item]) -> None:
        """A round: begin to score what is held, and expect what is to come. Raises `UserError`."""
        for item, row in held:
            self.score(item, row)
        for item in own:
            for counts in (self._left, self._total):
                counts[item.key[0]] = counts.get(item.key[0], 0) + 1
        self._progress.total += len(own)

    def take(self, item: Item, prompt: list[int], completion: Completion) -> None:
        """A response that has just ended. Special tokens at its end are no text."""
        row = {
            "benchmark": item.key[0], "id": item.key[1], "sample": item.sample,
            "response": response_text(self.tokenizer, completion), "tokens": completion.length,
            "finish_reason": completion.finish_reason, "opened": opens_thinking(self.tokenizer, prompt),
        }  # fmt: skip
        assert self._journal is not None
        self._journal.write(row)
        self.score(item, row)
        self._write_scored(wait=False)
        self._done += 1
        self._left[item.key[0]] -= 1
        self._progress.update(self._done, self._note())

    def score(self, item: Item, row: dict[str, Any]) -> None:
        """Begin to score a response as the journal has it."""
        assert self._workers is not None
        self._pending.append(
            submit(
                item.task.benchmark, item.problem, row["response"], self._workers, sample=item.sample, tokens=row["tokens"],
                truncated=row["finish_reason"] in ("length", "repetition"), opened=row["opened"],
            )
        )  # fmt: skip

    def finish(self) -> None:
        """Wait for all scores. Raises `UserError`."""
        self._write_scored(wait=True)

    def _write_scored(self, wait: bool) -> None:
        assert self._journal is not None
        still = []
        for pending in self._pending:
            if not (wait or pending.done):
                still.append(pending)
                continue
            outcome = pending.result()
            self.outcomes.append(outcome)
            self._journal.write(outcome.to_json())
        self._pending = still

    def _note(self) -> str:
        """How each benchmark that is not finished stands, with its ETA in the order of the queue."""
        seconds = (time.monotonic() - self._began) / self._done
        parts, before = [], 0
        for name, left in self._left.items():
            before += left
            if left:
                parts.append(f"{name} {self._total[name] - left}/{self._total[name]} ETA {seconds * before:.0f} s")
        return " · ".join(parts[:4]) + (f" · {len(parts) - 4} more" if len(parts) > 4 else "")


def _on_leaders(context: ParallelContext, work: Callable[[], None]) -> None:
    """Do it on the leader of each replica; raise, on every rank, the `UserError` of any."""
    problem: str | None = None
    try:
        if context.leads_replica:
            work()
    except UserError as error:
        problem = str(error)
    problems = [other for other in collectives.gather_over_world(problem) if other is not None]
    if problems:
        raise UserError(problems[0])
