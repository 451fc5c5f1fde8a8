"""Sampling of one benchmark under a token budget: what is sampled next, what counts, and the score that it buys.

    spending = Spending(problems, budget, "adaptive", same)
    while wanted := spending.wanted():                 # problems and samples, none where it is over
        spending.take({key: outcome of each})

What is wanted next depends on the outcomes alone, not on the order in which they came. So the same outcomes are counted in
every layout, and after every kill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from megatron_ring.benchmarks.compare import bootstrap
from megatron_ring.benchmarks.metrics import mean_and_error
from megatron_ring.benchmarks.scoring import Outcome
from megatron_ring.benchmarks.votes import Same, Votes

Rule = Literal["uniform", "adaptive"]
Sample = tuple[str, int]  # problem, number of the sample
CURVE_POINTS = 200


@dataclass(frozen=True)
class Budget:
    """How many tokens one benchmark may cost.

    Attributes:
        tokens: response tokens of all its problems together, thinking included; prompts are not counted.
        final_tokens: the budget of a model whose majority is right on every problem. In between it is `tokens` + solve rate
            * (`final_tokens` - `tokens`), as `algorithm.budget_schedule` has it for a training step. The solve rate is the
            score so far. Reference answers decide how much is spent, and never on which problem. None: `tokens`.
        confidence: a problem is decided above this certainty of its majority.
        samples: responses to one problem, at most.
    """

    tokens: int
    final_tokens: int | None = None
    confidence: float = 0.95
    samples: int = 40

    def limit(self, solve_rate: float) -> int:
        """Tokens that may be spent at this share of problems solved."""
        last = self.tokens if self.final_tokens is None else self.final_tokens
        return round(self.tokens + min(1.0, solve_rate) * (last - self.tokens))


class Spending:
    """One rule at work. Samples are drawn in rounds: one for each open problem, in the order of the file.

    uniform: every problem is open up to `budget.samples`. Numbers of samples differ by one at most.
    adaptive: the same, but a problem closes once its majority is certain enough, and its tokens go to the others.

    A response counts where it fits whole into what is left of the budget. The first that does not fit ends the spending. A
    problem without a counted response has score 0.

    Attributes:
        taken: the outcomes that count, in their order.
        spent: their tokens.
    """

    def __init__(self, problems: Sequence[str], budget: Budget, rule: Rule, same: Same | None = None) -> None:
        self.budget, self.rule = budget, rule
        self.taken: list[Outcome] = []
        self.spent = 0
        self._votes = {problem: Votes(same) for problem in problems}
        self._drawn = dict.fromkeys(self._votes, 0)
        self._values = dict.fromkeys(self._votes, 0.0)
        self._solved = 0.0  # sum of values
        self._round: deque[str] = deque()
        self._over = False
        self._curve: list[tuple[int, float]] = []

    @property
    def score(self) -> float:
        """Mean over all problems of the majority's expected score."""
        return self._solved / len(self._votes)

    @property
    def values(self) -> dict[str, float]:
        """The majority's expected score by problem."""
        return dict(self._values)

    def decided(self, problem: str) -> bool:
        """Whether its majority is certain enough."""
        return self._votes[problem].certainty > Fraction(self.budget.confidence)

    def wanted(self) -> list[Sample]:
        """What is to be sampled next; empty: it is over. What is left of a round, as far as the budget will do for it by
        the mean length so far."""
        if self._over:
            return []
        if not self._round:
            self._round.extend(problem for problem in self._votes if self._open(problem))
        count, left = len(self._round), self._left()
        if self.spent and self.taken:
            count = min(count, max(1, left * len(self.taken) // self.spent))
        return [(problem, self._drawn[problem]) for problem in list(self._round)[:count]]

    def take(self, outcomes: Mapping[Sample, Outcome]) -> None:
        """The outcomes of all that `wanted` has named."""
        for key in self.wanted():
            outcome = outcomes[key]
            if outcome.tokens > self._left():
                self._over = True
                return
            self._count(outcome)
            self._round.popleft()

    def _open(self, problem: str) -> bool:
        enough = self.rule == "adaptive" and self.decided(problem)
        return self._drawn[problem] < self.budget.samples and not enough

    def _left(self) -> int:
        return self.budget.limit(self.score) - self.spent

    def _count(self, outcome: Outcome) -> None:
        problem = outcome.id
        self._drawn[problem] += 1
        self._votes[problem].add(outcome.given, outcome.score)
        value = self._votes[problem].value
        self._solved += value - self._values[problem]
        self._values[problem] = value
        self.taken.append(outcome)
        self.spent += outcome.tokens
        self._curve.append((self.spent, self.score))

    def describe(self) -> dict[str, Any]:
        """What result.json says of it: figures, the curve (tokens, score), and samples and value by problem."""
        score, error = mean_and_error([[value] for value in self._values.values()])
        counts = list(self._drawn.values())
        step = max(1, -(-len(self._curve) // CURVE_POINTS))
        curve = [(0, 0.0), *self._curve[step - 1 :: step]]
        if self._curve and curve[-1] != self._curve[-1]:
            curve.append(self._curve[-1])
        return {
            "spent": self.spent, "score": score, "standard_error": error, "responses": len(self.taken),
            "samples": {"least": min(counts), "mean": sum(counts) / len(counts), "most": max(counts)},
            "decided": sum(map(self.decided, self._votes)), "unanswered": counts.count(0),
            "ended": "budget" if self._over else "every problem has enough", "curve": curve,
            "by_problem": {problem: [self._drawn[problem], self._values[problem]] for problem in self._votes},
        }  # fmt: skip

    def values_at(self, tokens: int, same: Same | None = None) -> dict[str, float]:
        """`values` after the responses that fit into so many tokens, in their order."""
        earlier = Spending(list(self._votes), self.budget, self.rule, same)
        for outcome in self.taken:
            if earlier.spent + outcome.tokens > tokens:
                break
            earlier._count(outcome)
        return earlier.values


def at_equal_tokens(first: Spending, second: Spending, same: Same | None = None) -> dict[str, Any]:
    """Second minus first where both have spent as much as the thriftier one: the two scores, the difference, and its 95 %
    interval by resampling problems."""
    tokens = min(first.spent, second.spent)
    pairs = [spending.values_at(tokens, same) for spending in (first, second)]
    changes = [pairs[1][problem] - pairs[0][problem] for problem in pairs[0]]
    low, high = bootstrap(changes)
    scores: dict[str, float] = {
        one.rule: sum(values.values()) / len(values) for one, values in zip((first, second), pairs, strict=True)
    }
    return {"tokens": tokens, **scores, "difference": sum(changes) / len(changes), "low": low, "high": high}
