"""The CodeElo rating: what rating a contestant would have who came where the model's score puts it, from a contest's public
standings and rating changes (Quan et al. 2025, arXiv 2501.01257); and the share of rated users below it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ring.errors import UserError

LOWEST, HIGHEST = -1000.0, 6000.0
WRONG_TRY = 50.0  # points off for each failed try before the one that passes
PENALTY = 10.0  # minutes for each, where problems have no points


def expected_rank(rating: float, others: Sequence[float]) -> float:
    """1 + the sum over others of the chance that they do better."""
    return 1.0 + sum(1.0 / (1.0 + 10.0 ** ((rating - other) / 400.0)) for other in others)


def rating_of_rank(rank: float, others: Sequence[float]) -> float:
    """The rating whose expected rank among `others` is `rank`, to 0.01; a rank beyond all ends at the bounds."""
    if not others:
        raise ValueError("a contest without rated contestants")
    low, high = LOWEST, HIGHEST
    while high - low > 0.01:
        middle = (low + high) / 2
        if expected_rank(middle, others) > rank:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def percentile(rating: float, ratings: Sequence[float]) -> float:
    """Share of users (0..100) with a lower rating; `ratings` is sorted, as sorted_ratings.json is."""
    if not ratings:
        raise ValueError("no ratings")
    return 100.0 * bisect_left(ratings, rating) / len(ratings)


def contest_rating(contest: Mapping[str, Any], tries: Mapping[str, Sequence[bool]]) -> float:
    """The rating of a contest.

    Args:
        contest: `standings` and `ratingChanges`, the `result` of Codeforces' contest.standings and contest.ratingChanges.
        tries: by index of the problem (A, B, …), whether each try passed, in order; what follows a pass does not count.

    Raises:
        UserError: the standings are not of that form, or nobody in them is rated.
    """
    try:
        problems = contest["standings"]["problems"]
        changes = {change["handle"]: float(change["oldRating"]) for change in contest["ratingChanges"]}
        rows = [
            (row["party"]["members"][0]["handle"], (float(row["points"]), -float(row.get("penalty") or 0)))
            for row in contest["standings"]["rows"]
            if len(row["party"]["members"]) == 1
        ]
        worth = [(str(problem["index"]), problem.get("points")) for problem in problems]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"not a contest's standings and rating changes: {type(error).__name__} {error}") from None
    humans = [(result, changes[handle]) for handle, result in rows if handle in changes]  # both lists must have them
    if not humans:
        raise UserError("no contestant of the standings is in the rating changes: give both of the same contest")
    own = _result(worth, tries)
    rank = 1 + sum(result > own for result, _ in humans)
    return rating_of_rank(rank, [old for _, old in humans])


def _result(worth: Sequence[tuple[str, Any]], tries: Mapping[str, Sequence[bool]]) -> tuple[float, float]:
    """(points, minus penalty) of a model, for comparison with the standings' rows."""
    scored = any(points is not None for _, points in worth)
    total = penalty = 0.0
    for index, points in worth:
        results = list(tries.get(index, ()))
        if True not in results:
            continue
        failed = results.index(True)
        total += max(0.0, float(points or 0) - WRONG_TRY * failed) if scored else 1.0
        penalty += PENALTY * failed
    return total, 0.0 if scored else -penalty
