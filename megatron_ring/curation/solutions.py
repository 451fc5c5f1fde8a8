"""Solutions of code problems, run against the problem's tests in the sandbox that training uses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from megatron_ring.curation.options import Solutions
from megatron_ring.curation.store import Row, ShardWriter
from megatron_ring.errors import UserError
from megatron_ring.rewards.interface import MACHINE_FAILURE, Reward, ScoreRequest
from megatron_ring.rewards.pool import RewardPool

_CPP = re.compile(r"^\s*#\s*include\b|\busing\s+namespace\s+std\b", re.MULTILINE)
_JAVA = re.compile(r"\bpublic\s+(?:static\s+void\s+main|class)\b")


@dataclass
class _Trial:
    """A row and the solutions of it that passed so far."""

    row: Row
    passed: list[Any] = field(default_factory=list)
    problem: str = ""


class SolutionRunner:
    """Runs them with so many workers. Use as a context manager."""

    def __init__(self, options: Solutions, workers: int) -> None:
        self._options = options
        self._pool = RewardPool(workers, unsafe_code=options.unsafe_code)
        self._started = False

    def __enter__(self) -> SolutionRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.close()

    def run(self, rows: Sequence[Row], writer: ShardWriter) -> None:
        """Keep or drop each row, in order.

        Raises:
            UserError: there is no sandbox on this machine, or the machine fails.
        """
        options = self._options
        trials = [_Trial(row) for row in rows]
        waiting = [trial for trial in trials if trial.row["domain"] == "code" and trial.row.get("solutions")]
        if waiting and not self._started:
            self._pool.start(["code"])
            self._started = True
        for turn in range(options.tried):
            waiting = [trial for trial in waiting if len(trial.passed) < options.keep and turn < len(trial.row["solutions"])]
            verdicts = [self._submit(trial, trial.row["solutions"][turn]) for trial in waiting]
            for trial, verdict in zip(waiting, verdicts, strict=True):
                self._note(trial, trial.row["solutions"][turn], verdict.result())
        for trial in trials:
            self._decide(trial, writer)

    def _submit(self, trial: _Trial, solution: Any) -> Future[Reward]:
        response = as_response(solution, trial.row["answer"])
        return self._pool.submit(ScoreRequest("code", None, response, trial.row["answer"]))

    def _note(self, trial: _Trial, solution: Any, reward: Reward) -> None:
        if MACHINE_FAILURE in reward.detail:
            raise UserError(f"solutions: {trial.row['id']}: {reward.reason}: run the same command again")
        if reward.value >= 1:
            trial.passed.append(solution)
        else:
            trial.problem = trial.problem or reward.reason

    def _decide(self, trial: _Trial, writer: ShardWriter) -> None:
        row = trial.row
        if row["domain"] != "code":
            writer.keep(row)
        elif not row.get("solutions"):
            if self._options.without == "keep":
                writer.keep(row)
            else:
                writer.drop(row, "no_solution", "the problem brings no solution to check its tests with")
        elif trial.passed:
            writer.keep({**row, "solutions": trial.passed})
        else:
            tried = min(self._options.tried, len(row["solutions"]))
            writer.drop(row, "no_passing_solution", f"none of {tried} passes every test: {trial.problem}"[:300])


def as_response(solution: Any, answer: Any) -> str:
    """A solution {text, language} as the verifier wants a response: a fenced block that names its language."""
    text = str(solution.get("text"))
    if "```" in text:
        return text
    language = solution.get("language") or (answer.get("language") if isinstance(answer, dict) else None)
    language = language or ("cpp" if _CPP.search(text) else "java" if _JAVA.search(text) else "python")
    return f"```{language}\n{text}\n```"
