"""The best one-to-one assignment (Kuhn and Munkres), for a few dozen rows."""

from __future__ import annotations

from collections.abc import Sequence


def best_sum(values: Sequence[Sequence[float]]) -> float:
    """The largest sum of entries of which no two share a row or a column. O(n^3)."""
    if not values or not values[0]:
        return 0.0
    size = max(len(values), len(values[0]))
    top = max(max(row) for row in values)
    cost = [
        [top - values[i][j] if i < len(values) and j < len(values[0]) else top for j in range(size)] for i in range(size)
    ]
    row_price, column_price = [0.0] * (size + 1), [0.0] * (size + 1)
    row_of = [0] * (size + 1)  # by column, from 1; 0: none
    for row in range(1, size + 1):
        _assign(row, cost, row_price, column_price, row_of)
    pairs = ((row_of[column] - 1, column - 1) for column in range(1, size + 1))
    return sum(values[i][j] for i, j in pairs if i < len(values) and j < len(values[0]))


def _assign(row: int, cost: list[list[float]], row_price: list[float], column_price: list[float], row_of: list[int]) -> None:
    """Give `row` (from 1) a column, moving others along the cheapest alternating path."""
    size = len(cost)
    row_of[0] = row
    least, came_from, used = [float("inf")] * (size + 1), [0] * (size + 1), [False] * (size + 1)
    column = 0
    while True:
        used[column] = True
        current, step, following = row_of[column], float("inf"), 0
        for other in range(1, size + 1):
            if used[other]:
                continue
            reduced = cost[current - 1][other - 1] - row_price[current] - column_price[other]
            if reduced < least[other]:
                least[other], came_from[other] = reduced, column
            if least[other] < step:
                step, following = least[other], other
        for other in range(size + 1):
            if used[other]:
                row_price[row_of[other]] += step
                column_price[other] -= step
            else:
                least[other] -= step
        column = following
        if row_of[column] == 0:
            break
    while column:
        row_of[column] = row_of[came_from[column]]
        column = came_from[column]
