"""Hostile answers, each rejected for the right reason, and right answers that are spaced oddly."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.logic import GAMES


def judge(name: str, instance: Any, answer: str) -> Reward:
    game = GAMES[name]
    return game.score(ScoreRequest(f"logic/{name}", None, game.respond(answer), instance))


C = {"numbers": [2, 3, 4, 10, 10], "target": 50, "use_all": False}
T = {"numbers": [3, 3, 8, 8]}
S = {"givens": ["1...", "..3.", ".4..", "...2"]}
M = {"grid": ["S.#", "#..", "##G"], "shortest": True}
A = {"output": [[1, 2], [0, 3]]}
K = {"people": ["Ada", "Ben"], "statements": [["not", ["knight", 1]], ["exactly", 1]]}
N = {"rows": [[1], [2]], "columns": [[2], [1]]}
INJECTION = "__import__('os').system('false')"
HOSTILE = [
    *((name, instance, INJECTION, "") for name, instance in (("countdown", C), ("sudoku", S), ("maze", M), ("arc", A))),
    *((name, instance, INJECTION, "") for name, instance in (("twenty_four", T), ("knights", K), ("nonogram", N))),
    ("countdown", C, "(lambda: 50)()", "not part of an expression"),
    ("countdown", C, "50", "50 is not one of the given numbers"),
    ("countdown", C, "10*10/2*1", "1 is not one of the given"),
    ("countdown", C, "10*(2+3)+4-4", "4 is used 2 times and given 1 times"),
    ("countdown", C, "10*10*10/(10*2)", "10 is used 4 times and given 2"),
    ("countdown", C, "23+4*10-13", "23 is not one of"),
    ("countdown", C, "2 3+10", "an operator or ) is missing before '3+10'"),
    ("countdown", C, "10/(2-2)", "2 is used 2 times"),
    ("countdown", C, "4/(10-10)", "division by zero"),
    ("countdown", C, "4/(10-10)*(2-3)", "division by zero"),
    ("countdown", C, "10*(2+3)=50", "not part of an expression"),
    ("countdown", C, "50=10*(2+3)", "not part of an expression"),
    ("countdown", C, "-10*(2-3)+4*10", "a number or ( is missing before '-10"),
    ("countdown", C, "10*(2+-3)", "a number or ( is missing"),
    ("countdown", C, "10(2+3)", "an operator or )"),
    ("countdown", C, "(10*(2+3)", "never closed"),
    ("countdown", C, "10*(2+3))", "no opening"),
    ("countdown", C, "10*(2+3)*", "ends where a number is due"),
    ("countdown", C, "()", "a number or ("),
    ("countdown", C, "10**2", "a number or ("),
    ("countdown", C, "10//2", "a number or ("),
    ("countdown", C, "10^2", "not part of"),
    ("countdown", C, "1e1*(2+3)", "not part of"),
    ("countdown", C, "10.0*(2+3)", "not part of"),
    ("countdown", C, "010*(2+3)", "plain whole number"),
    ("countdown", C, "1_0*(2+3)", "not part of"),
    ("countdown", C, "0xA*(2+3)", "not part of"),
    ("countdown", C, "10*(\u0662+3)", "not part of"),
    ("countdown", C, "10*(\uff12+3)", "not part of"),
    ("countdown", C, "10\u00d7(2+3)", "not part of"),
    ("countdown", C, "10\\times(2+3)", "not part of"),
    ("countdown", C, "10*(2+3), 10*4+10", "not part of"),
    ("countdown", C, "10*(2+3) # yes", "not part of"),
    ("countdown", C, "(" * 900, "ends where"),
    ("countdown", C, "(" * 4000, "more than 1000 characters"),
    ("countdown", C, "9" * 900, "plain whole number"),
    ("countdown", C, "10*4+2", "the value is 42, not 50"),
    ("countdown", {**C, "use_all": True}, "10*(2+3)", "not every number is used: 4 is left"),
    ("twenty_four", T, "8/(3-8/3", "never closed"),
    ("twenty_four", T, "3*8", "not every number is used: 3 is left"),
    ("twenty_four", T, "33-8-8/8", "33 is not one of"),
    ("twenty_four", T, "24", "24 is not one of"),
    ("twenty_four", T, "8/0.3333", "not part of"),
    ("sudoku", S, "1 3 2 4\n4 2 3 1\n2 4 1 3", "3 rows instead of 4"),
    ("sudoku", S, "1 3 2 4\n4 2 3 1\n2 4 1 3\n3 1 4 2\n1 2 3 4", "5 rows instead of 4"),
    ("sudoku", S, "1 3 2 4 1\n4 2 3 1\n2 4 1 3\n3 1 4 2", "row 1 has 5 cells"),
    ("sudoku", S, "1 3 2 4 4 2 3 1 2 4 1 3 3 1 4 2", "1 rows"),
    ("sudoku", S, "1 . 2 4\n4 2 3 1\n2 4 1 3\n3 1 4 2", "row 1, column 2: '.' is not one of 1234"),
    ("sudoku", S, "1 3 2 0\n4 2 3 1\n2 4 1 3\n3 1 4 2", "'0' is not one of"),
    ("sudoku", S, "1 3 2 \u0664\n4 2 3 1\n2 4 1 3\n3 1 4 2", "is not one of"),
    ("sudoku", S, "1,3,2,4\n4,2,3,1\n2,4,1,3\n3,1,4,2", "',' is not one of"),
    ("sudoku", S, "2 3 1 4\n4 1 3 2\n1 4 2 3\n3 2 4 1", "the given 1 became 2"),
    ("sudoku", S, "1 1 1 1\n3 3 3 3\n4 4 4 4\n2 2 2 2", "row 1 holds 1 more than once"),
    ("sudoku", S, "1 2 3 4\n1 2 3 4\n1 4 3 2\n1 4 3 2", "column 1 holds 1"),
    ("sudoku", {"givens": ["...."] * 4}, "1 2 3 4\n2 3 4 1\n3 4 1 2\n4 1 2 3", "box 1 holds 2"),
    ("maze", M, "RRDD", "move 2 (right) runs into a wall"),
    ("maze", M, "RDR", "the path ends at row 2, column 3, not at the goal"),
    ("maze", M, "L", "move 1 (left) leaves the grid"),
    ("maze", M, "U", "move 1 (up) leaves the grid"),
    ("maze", M, "RDRDD", "move 5 (down) leaves the grid"),
    ("maze", M, "rdrd", "move 1: 'r' is not one of"),
    ("maze", M, "R,D,R,D", "move 2: ','"),
    ("maze", M, "R\u2193", "move 2"),
    ("maze", M, "\\searrow\\searrow", "move 1"),
    ("maze", M, "RLRDRD", "the path has 6 moves, the shortest has 4"),
    ("maze", M, "RDRDU", "not at the goal"),
    ("arc", A, "1 2\n0 4", "row 2, column 2 is 4, not 3"),
    ("arc", A, "1 2 0\n0 3 0", "row 1 has 3 cells"),
    ("arc", A, "1 2\n0 3\n0 0", "3 rows"),
    ("arc", A, "[[1, 2], [0, 3]]", "'[' is not one of"),
    ("arc", A, "1 2\n. 3", "'.' is not one of"),
    ("arc", A, "1 2\n0 \u00b3", "is not one of"),
    ("arc", A, "1 2\n\n0 3\nend", "'e' is not one of"),
    ("arc", A, "1\u20282\n0 3", "is not one of"),
    ("knights", K, "Ada: knight", "Ben is not named"),
    ("knights", K, "Ada: knight, Ben: knight", "Ada would be a knight who lies"),
    ("knights", K, "Ada: knight, Ben: knave", "Ben would be a knave who tells the truth"),
    ("knights", K, "Ada: knave, Ben: knight, Ada: knight", "Ada is named twice"),
    ("knights", K, "Ada: knave, Ben: knight, Eve: knave", "'Eve' is not one of the people"),
    ("knights", K, "Ada: knave, ben: knight", "'ben' is not one"),
    ("knights", K, "Ada: knave; Ben: knight", "not of the form"),
    ("knights", K, "Ada: Knave, Ben: Knight", "not of the form"),
    ("knights", K, "Ada: knave or knight, Ben: knight", "not of the form"),
    ("knights", K, "Ada: knave, Ben: knight,", "not of the form"),
    ("nonogram", N, "# .\n. #", "row 2 has the runs 1, not 2"),
    ("nonogram", N, ". #\n# #", "column 1 has the runs 1, not 2"),
    ("nonogram", N, "# .\n# # #", "row 2 has 3 cells"),
    ("nonogram", N, "1 0\n1 1", "'1' is not one of"),
    ("nonogram", N, "\u25a0 .\n# #", "is not one of"),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "instance", "answer", "words"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers(name: str, instance: dict[str, Any], answer: str, words: str) -> None:
    reward = judge(name, instance, answer)
    assert reward.value == 0 and words in reward.reason and reward.reason.isascii() and "\n" not in reward.reason, reward


@pytest.mark.parametrize(
    ("name", "instance", "answer"),
    [
        ("countdown", C, " 10 * ( 2 + 3 )\n"),
        ("countdown", C, "((((10)))*(3+2))"),
        ("countdown", C, "10*10/2"),
        ("twenty_four", T, "8/(3-8/3)"),
        ("sudoku", S, "1324\n4231\n2413\n3142"),
        ("maze", M, "R D R D"),
        ("maze", {**M, "shortest": False}, "RLRDRDUD"),
        ("arc", A, "12\n03"),
        ("knights", K, "Ben:knight,\nAda : knave"),
        ("nonogram", N, "#.\n##"),
    ],
)
def test_right_answers_however_spaced(name: str, instance: dict[str, Any], answer: str) -> None:
    assert judge(name, instance, answer).reason == "correct"
