"""Benchmarks over any layout: all requests in one queue, long ones first; responses and scores in journals."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ring.benchmarks.problem import Benchmark, Problem
from megatron_ring.benchmarks.scoring import WAITS, Outcome, PendingOutcome, submit
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.parallel import collectives
from megatron_ring.rewards import RewardPool
from megatron_ring.rollout.journal import Journal, Key, read_journals
from megatron_ring.rollout.texts import opens_thinking, response_text
from megatron_ring.run.progress import Progress
from megatron_ring.sampler.completion import Completion
from megatron_ring.sampler.requests import GenerationRequest, request_seed
from megatron_ring.sampler.sampler import Sampler

Report = Callable[[int, str], None]


@dataclass(frozen=True)
class Task:
    """A benchmark to be measured. `source`: what is recorded of its file."""

    benchmark: Benchmark
    problems: tuple[Problem, ...]
    samples: int
    source: dict[str, Any]

    @property
    def responses(self) -> int:
        """Responses that are wanted."""
        return len(self.problems) * self.samples


@dataclass(frozen=True)
class Item:
    """One response that is wanted."""

    task: Task
    problem: Problem
    sample: int

    @property
    def key(self) -> Key:
        return self.task.benchmark.name, self.problem.id, self.sample

    def seed(self, seed: int) -> int:
        """Of this response, whatever else is measured beside it."""
        name = hashlib.sha256(f"{self.key[0]}\0{self.key[1]}".encode(errors="surrogatepass")).digest()
        return request_seed(seed, int.from_bytes(name[:8], "big"), self.sample)


def queue_of(tasks: Sequence[Task]) -> list[Item]:
    """Everything that is wanted: benchmarks of long responses first, the samples of a problem together."""
    ordered = sorted(tasks, key=lambda task: (-task.benchmark.length, task.benchmark.name))
    return [Item(task, problem, i) for task in ordered for problem in task.problems for i in range(task.samples)]


def run_suite(
    tasks: Sequence[Task], sampler: Sampler, tokenizer: RingTokenizer, workers: RewardPool | None, folder: Path, *,
    seed: int, instruction: str | None = None,
) -> list[Outcome]:  # fmt: skip
    """Sample and score what the journals in `folder` do not hold yet; all outcomes, on every rank. All ranks take part.

    Args:
        workers: on the leader of each replica.

    Raises:
        UserError: on every rank.
    """
    context = sampler.context
    done, to_score = collectives.from_main(lambda: _standing(folder))
    queue = queue_of(tasks)
    wanted = {item.key: item for item in queue}
    outcomes = {key: Outcome(**row) for key, row in done.items() if key in wanted}
    waiting = [item for item in queue if item.key not in outcomes and item.key not in to_score]
    places = {problem: place for place, problem in enumerate(dict.fromkeys(item.key[:2] for item in waiting))}
    own = [item for item in waiting if places[item.key[:2]] % context.data_size == context.data_rank]
    progress = Progress("evaluate", len(own), 0, context.is_main, unit="response")
    leader = _Leader(tokenizer, workers, progress.update, own)
    problem: str | None = None
    try:
        if context.leads_replica:
            leader.open(folder, context.data_rank)
            held = [wanted[key] for key in sorted(to_score) if key in wanted]
            for item in held[context.data_rank :: context.data_size]:
                leader.score(item, to_score[item.key])
    except UserError as error:
        problem = str(error)
    try:
        _settle(problem)
        requests = [
            GenerationRequest(
                tokenizer.prompt_tokens(item.problem.prompt, instruction), item.seed(seed), sampler.sampling.max_new_tokens,
                columns=frozenset(),
            )
            for item in own
        ]  # fmt: skip

        def take(place: int, completion: Completion) -> None:
            if context.leads_replica:
                leader.take(own[place], requests[place].prompt_tokens, completion)

        with progress:
            sampler.generate(requests, on_finished=take)
        try:
            if context.leads_replica:
                leader.finish()
        except UserError as error:
            problem = str(error)
        _settle(problem)
    finally:
        leader.close()
    for part in collectives.gather_over_world(leader.outcomes):
        outcomes |= {(item.benchmark, item.id, item.sample): item for item in part}
    return [outcomes[item.key] for item in queue]


def _standing(folder: Path) -> tuple[dict[Key, dict[str, Any]], dict[Key, dict[str, Any]]]:
    """Scores that are there, and responses that lack one. What is without a verdict is scored again."""
    responses, scores = read_journals(folder)
    scored = {key: row for key, row in scores.items() if row["score"] is not None or row["reason"] == WAITS}
    return scored, {key: row for key, row in responses.items() if key not in scored}


class _Leader:
    """What the leader of a replica does with its responses: writes them down, has them scored, says how it goes."""

    def __init__(self, tokenizer: RingTokenizer, workers: RewardPool | None, report: Report, own: Sequence[Item]) -> None:
        self._tokenizer, self._workers, self._report = tokenizer, workers, report
        self._journal: Journal | None = None
        self._pending: list[PendingOutcome] = []
        self.outcomes: list[Outcome] = []
        self._left: dict[str, int] = {}
        for item in own:
            self._left[item.key[0]] = self._left.get(item.key[0], 0) + 1
        self._total, self._done, self._began = dict(self._left), 0, time.monotonic()

    def open(self, folder: Path, rank: int) -> None:
        self._journal = Journal(folder, rank).__enter__()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.__exit__(None, None, None)

    def take(self, item: Item, prompt: list[int], completion: Completion) -> None:
        """A response that has just ended. Special tokens at its end are no text."""
        row = {
            "benchmark": item.key[0], "id": item.key[1], "sample": item.sample,
            "response": response_text(self._tokenizer, completion), "tokens": completion.length,
            "finish_reason": completion.finish_reason, "opened": opens_thinking(self._tokenizer, prompt),
        }  # fmt: skip
        assert self._journal is not None
        self._journal.write(row)
        self.score(item, row)
        self._write_scored(wait=False)
        self._done += 1
        self._left[item.key[0]] -= 1
        self._report(self._done, self._note())

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


def _settle(problem: str | None) -> None:
    """Raise, on every rank, the problem of any."""
    problems = [other for other in collectives.gather_over_world(problem) if other is not None]
    if problems:
        raise UserError(problems[0])
