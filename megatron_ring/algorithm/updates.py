"""How a step's trained tokens are dealt to its optimizer updates (`--updates-per-step`).

An objective with a token budget keeps it in every update: equal budgets, a response at a border is cut. Others train whole
responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """What one update trains of the response `index` of a step: its tokens from `begin` up to, and without, `end`. Those
    before `begin` are context."""

    index: int
    begin: int
    end: int

    @property
    def tokens(self) -> int:
        return self.end - self.begin


def equal_budgets(trained: Sequence[int], updates: int, order: Sequence[int] | None = None) -> list[list[Piece]]:
    """Budgets that are equal to within one token (Phi / updates where that divides), the larger ones first.

    Each takes one response after another until it is full, and cuts the last one, as `budget.select_budget` does. The rest
    of that response begins the next update, so that all selected tokens are trained.

    Args:
        trained: how many of its first tokens are trained of each response.
        order: the responses' indices as the budget took them; None: as they come.

    Returns:
        For each update its pieces, by the responses' indices.

    Raises:
        ValueError: fewer tokens than updates, of which there is one at least.
    """
    total = sum(trained)
    if not 1 <= updates <= max(1, total):
        raise ValueError(f"{updates} updates of {total} trained tokens: give each at least one token")
    parts: list[list[Piece]] = [[]]
    room = _share(total, updates, 0)
    for index in range(len(trained)) if order is None else order:
        begin = 0
        while begin < trained[index]:
            if not room:
                room = _share(total, updates, len(parts))
                parts.append([])
            end = min(trained[index], begin + room)
            parts[-1].append(Piece(index, begin, end))
            room, begin = room - (end - begin), end
    return [sorted(part, key=lambda piece: piece.index) for part in parts]


def whole_responses(trained: Sequence[int], updates: int) -> list[list[Piece]]:
    """Whole responses as they come: an update is full when the tokens so far first reach its share of all tokens. Each has
    one response at least. Raises `ValueError` for fewer responses than updates."""
    pieces = [Piece(index, 0, count) for index, count in enumerate(trained) if count]
    if not 1 <= updates <= max(1, len(pieces)):
        raise ValueError(f"{updates} updates of {len(pieces)} trained responses: give each at least one response")
    total, so_far = sum(trained), 0
    parts: list[list[Piece]] = [[]]
    for place, piece in enumerate(pieces):
        left = len(pieces) - place
        full = so_far * updates >= total * len(parts) or left <= updates - len(parts)
        if parts[-1] and full and len(parts) < updates:
            parts.append([])
        parts[-1].append(piece)
        so_far += piece.tokens
    return parts


def _share(total: int, updates: int, number: int) -> int:
    return total // updates + (number < total % updates)
