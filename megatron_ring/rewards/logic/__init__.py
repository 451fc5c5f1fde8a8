"""Logic games with verifiers that check constraints: any right answer counts, nothing else does.

One file per game; `game.py` holds what they share. A game's domain is `logic/NAME`. Each can generate problems from a seed
and a difficulty, score a response in linear time, and solve its own instances for the tests.
"""

from __future__ import annotations

from megatron_ring.rewards.logic import arc, countdown, knights, maze, nonogram, sudoku, twenty_four
from megatron_ring.rewards.logic.game import Game

GAMES: dict[str, Game] = {
    module.GAME.name: module.GAME for module in (arc, countdown, knights, maze, nonogram, sudoku, twenty_four)
}

__all__ = ["GAMES", "Game"]
