"""Arena-Hard's control for style: the win rate that is left where both answers are of equal length and markdown.

A Bradley–Terry model of the games with features of style beside the strength (arena-hard-auto, `show_result.py`):

    P(answer wins) = sigmoid(strength + features . weights)        win rate = sigmoid(strength)

The features of a pair are (a - b) / (a + b) of the lengths, and (a - b) / (a + b + 1) of the numbers of headings, list items
and bold parts for each unit of length, counted outside of code blocks. They are divided by their deviation over all games. A
clear verdict counts as three games, a tie as half a win.

What differs from the published program:
- It also subtracts the mean of each feature over the games of all models that it ranks. There is one model here, and its
  mean would take the control out: 0 stays equal style.
- Lengths are numbers of words and signs, not tokens of GPT-4o.
- A weak penalty (`PENALTY`) keeps the fit finite where one answer wins every game.
- The interval resamples problems, not single games.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Game = tuple[float, float]  # share won by the answer, weight

NAMES = ("length", "headings", "lists", "bold")
MUCH = 3  # weight of a game that one answer wins by far
WORTH: dict[str, Game] = {"A>>B": (1.0, MUCH), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, MUCH)}
PENALTY = 1e-3  # times half the sum of squares of strength and weights
ROUNDS = 200  # of the bootstrap
STEPS = 50  # of Newton's method
LEAST = 10  # pairs; fewer say nothing about five numbers

_CODE = re.compile(r"```[^`]*```")
_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]")
_MARKS = (
    re.compile(r"^#{1,6}\s", re.MULTILINE),
    re.compile(r"^[ \t]*(?:\d{1,9}\.|[-*+])\s", re.MULTILINE),
    re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
)


def style_of(text: str) -> tuple[int, int, int, int]:
    """Length, and numbers of headings, list items and bold parts outside of code blocks."""
    plain = _CODE.sub("", text)
    headings, lists, bold = (len(mark.findall(plain)) for mark in _MARKS)
    return len(_UNIT.findall(text)), headings, lists, bold


def difference(answer: str, other: str) -> tuple[float, ...]:
    """The features of a pair, before they are normalised. An empty text has no marks."""
    a, b = style_of(answer), style_of(other)
    length = (a[0] - b[0]) / (a[0] + b[0]) if a[0] + b[0] else 0.0
    shares = [(x / max(1, a[0]), y / max(1, b[0])) for x, y in zip(a[1:], b[1:], strict=True)]
    return length, *((x - y) / (x + y + 1) for x, y in shares)


def controlled(
    pairs: Sequence[tuple[str, str]], verdicts: Sequence[tuple[str, str]], seed: int = 0
) -> dict[str, Any] | None:
    """The controlled win rate, its 95 % interval, and the weight of each feature in standard deviations of it; None for
    fewer than 10 pairs.

    Args:
        pairs: answer and other.
        verdicts: of each pair, with the answer as A, then as B.
    """
    if len(pairs) < LEAST:
        return None
    styles = np.array([difference(*pair) for pair in pairs])
    won, weight = _games(verdicts)
    strength, *weights = _fit_pairs(styles, won, weight)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, len(pairs), len(pairs)) for _ in range(ROUNDS))
    rates = [_sigmoid(_fit_pairs(styles[rows], won[rows], weight[rows])[0]) for rows in drawn]
    low, high = np.quantile(rates, (0.025, 0.975))
    return {
        "win_rate": float(_sigmoid(strength)), "low": float(low), "high": float(high),
        "weights": dict(zip(NAMES, map(float, weights), strict=True)),
    }  # fmt: skip


def _games(verdicts: Sequence[tuple[str, str]]) -> tuple[Array, Array]:
    """Share won by the answer and weight of the two games of each pair: (pairs, 2) each."""
    first = np.array([WORTH[one] for one, _ in verdicts])
    second = np.array([WORTH[two] for _, two in verdicts])
    return np.stack([first[:, 0], 1 - second[:, 0]], 1), np.stack([first[:, 1], second[:, 1]], 1)


def _fit_pairs(styles: Array, won: Array, weight: Array) -> Array:
    """Strength and weights. Features are divided by their deviation over games, each game as often as it counts; one that is
    the same everywhere has no weight."""
    counts = weight.sum(1)
    mean = np.average(styles, axis=0, weights=counts)
    deviation = np.sqrt(np.average((styles - mean) ** 2, axis=0, weights=counts) * counts.sum() / max(1.0, counts.sum() - 1))
    normal = np.divide(styles, deviation, out=np.zeros_like(styles), where=deviation > 1e-12)
    design = np.column_stack([np.ones(len(styles)), normal])
    return fit(design, (won * weight).sum(1), counts)


def fit(design: Array, won: Array, games: Array) -> Array:
    """The coefficients that maximise sum(won log p + (games - won) log(1 - p)) - PENALTY/2 |c|^2, p = sigmoid(design c).

    Args:
        design: (rows, coefficients).
        won: games won in each row, of `games`.
    """
    found = np.zeros(design.shape[1])
    for _ in range(STEPS):
        chance = _sigmoid(design @ found)
        gradient = design.T @ (won - games * chance) - PENALTY * found
        curvature = (design.T * (games * chance * (1 - chance))) @ design + PENALTY * np.eye(len(found))
        step = np.linalg.solve(curvature, gradient)
        found = found + step * min(1.0, 2.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-10:
            break
    return found


def _sigmoid(value: Any) -> Any:
    return 0.5 * (1 + np.tanh(np.asarray(value) / 2))
