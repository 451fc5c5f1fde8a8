"""What of each benchmark is to be sampled: so many responses to each problem at once, or round by round under a budget."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_ring.benchmarks.budget import Budget, Rule, Spending, at_equal_tokens
from megatron_ring.benchmarks.problem import Benchmark, Problem
from megatron_ring.benchmarks.result import has_votes, same_of
from megatron_ring.benchmarks.scoring import Outcome
from megatron_ring.config.checks import require
from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.rollout.journal import Key
from megatron_ring.sampler.requests import request_seed

RuleName = Literal["uniform", "adaptive", "both"]


@dataclass(frozen=True)
class Task:
    """A benchmark to be measured.

    Attributes:
        samples: responses to each problem, where there is no budget.
        source: what is recorded of its file.
        budget: what its responses may cost, spent by `rule`.
    """

    benchmark: Benchmark
    problems: tuple[Problem, ...]
    samples: int
    source: dict[str, Any]
    budget: Budget | None = None
    rule: RuleName = "adaptive"

    @property
    def size(self) -> str:
        """What is to be sampled, for people."""
        if self.budget is None:
            return f"{len(self.problems):,} problems x {self.samples}"
        grows = "" if self.budget.final_tokens is None else f" to {self.budget.final_tokens:,}"
        rule = "uniform, and adaptive" if self.rule == "both" else self.rule
        return f"{len(self.problems):,} problems, {self.budget.tokens:,}{grows} tokens, {rule}"


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


class Plan:
    """One benchmark on its way. `wanted` and `take` go in turns until nothing is wanted."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._problems = {problem.id: problem for problem in task.problems}
        self._fixed: list[Outcome] | None = None
        rules: tuple[Rule, ...] = ("uniform", "adaptive") if task.rule == "both" else (task.rule,)
        self._spendings = [
            Spending(list(self._problems), task.budget, rule, same_of(task.problems))
            for rule in rules
            if task.budget is not None
        ]

    def wanted(self) -> list[Item]:
        """Responses that are wanted next, the samples of a problem together."""
        if self.task.budget is None:
            samples = range(self.task.samples if self._fixed is None else 0)
            return [Item(self.task, problem, i) for problem in self.task.problems for i in samples]
        samples_of = {sample: None for spending in self._spendings for sample in spending.wanted()}
        return [Item(self.task, self._problems[problem], i) for problem, i in samples_of]

    def take(self, outcomes: Mapping[Key, Outcome]) -> None:
        """The outcomes of all that `wanted` has named, among others."""
        name = self.task.benchmark.name
        if self.task.budget is None and self._fixed is None:
            self._fixed = [outcomes[item.key] for item in self.wanted()]
        for spending in self._spendings:
            spending.take({sample: outcomes[(name, *sample)] for sample in spending.wanted()})

    @property
    def counted(self) -> list[Outcome]:
        """The outcomes that count: with a budget those of its rule, of both rules the uniform one's."""
        return self._spendings[0].taken if self._spendings else self._fixed or []

    def describe(self) -> dict[str, Any] | None:
        """What result.json says of the budget; None without one."""
        budget = self.task.budget
        if budget is None:
            return None
        found: dict[str, Any] = {
            "tokens": budget.tokens, "final_tokens": budget.final_tokens, "confidence": budget.confidence,
            "max_samples": budget.samples, "rules": {one.rule: one.describe() for one in self._spendings},
        }  # fmt: skip
        if len(self._spendings) == 2:
            first, second = self._spendings
            found["at_equal_tokens"] = at_equal_tokens(first, second, same_of(self.task.problems))
        return found


def plans_of(tasks: Iterable[Task]) -> list[Plan]:
    """Of benchmarks with long responses first: that is the order in which they are sampled."""
    return [Plan(task) for task in sorted(tasks, key=lambda task: (-task.benchmark.length, task.benchmark.name))]


def budget_of(config: EvaluateConfig, benchmark: Benchmark, problems: Sequence[Problem]) -> Budget | None:
    """What the flags allow a benchmark to cost; None where they say nothing, or its answers have no majority."""
    if config.token_budget is None or not has_votes(benchmark, problems):
        return None
    return Budget(config.token_budget, config.final_token_budget, config.budget_confidence, config.budget_samples)


def check_budgets(config: EvaluateConfig, tasks: Sequence[Task]) -> None:
    """Raise `UserError` for a budget that no benchmark can have."""
    names = ", ".join(task.benchmark.name for task in tasks)
    told = f"--token-budget is of benchmarks whose answers can be equal, and those of {names} cannot: leave it out"
    require(config.token_budget is None or any(task.budget is not None for task in tasks), told)
