"""Verdicts against independent checkers that share no code with the verifiers: every single-character change of a right
answer, expressions of any kind, all fillings of small puzzles."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import permutations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.logic import GAMES
from megatron_ring.rewards.logic.arc import Rule, Task, explanations
from megatron_ring.rewards.logic.arc_transforms import TRANSFORMATIONS

seeds = st.integers(0, 2**48)


def judge(name: str, instance: Any, answer: str) -> Reward:
    game = GAMES[name]
    return game.score(ScoreRequest(f"logic/{name}", None, game.respond(answer), instance))


def python_value(node: ast.expr) -> Fraction:
    """Value of a syntax tree with + - * / and plain integers; anything else raises."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    assert isinstance(node, ast.BinOp)
    left, right = python_value(node.left), python_value(node.right)
    kind = type(node.op)
    if kind is ast.Div:
        return left / right
    return {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}[kind]  # type: ignore[index]


def reaches(instance: dict[str, Any], text: str, target: int, use_all: bool) -> bool:
    if not re.fullmatch(r"[0-9+\-*/() \t\r\n]*", text) or re.search(r"(?<![0-9])0[0-9]", text):
        return False
    try:
        tree = ast.parse(re.sub(r"\s", " ", text).strip(), mode="eval")
        value = python_value(tree.body)
    except (SyntaxError, AssertionError, KeyError, ZeroDivisionError):
        return False
    used, given_ = Counter(map(int, re.findall("[0-9]+", text))), Counter(instance["numbers"])
    return value == target and (used == given_ if use_all else used <= given_)


def lines(text: str) -> list[str]:
    return [line for line in (re.sub(r"[ \t\r]", "", row) for row in text.split("\n")) if line]


def fills_sudoku(instance: dict[str, Any], text: str) -> bool:
    rows, givens = lines(text), instance["givens"]
    size = len(givens)
    digits = set("123456789"[:size])
    high = {4: 2, 6: 2, 9: 3}[size]
    if len(rows) != size or any(len(row) != size or set(row) != digits for row in rows):
        return False
    columns = all({row[c] for row in rows} == digits for c in range(size))
    boxes: dict[tuple[int, int], set[str]] = {}
    for r, c in product(range(size), range(size)):
        boxes.setdefault((r // high, c // (size // high)), set()).add(rows[r][c])
    kept = all(g in (".", a) for row, line in zip(rows, givens, strict=True) for a, g in zip(row, line, strict=True))
    return columns and kept and all(box == digits for box in boxes.values())


def fits_clues(instance: dict[str, Any], text: str) -> bool:
    rows = lines(text)
    if len(rows) != len(instance["rows"]) or {len(row) for row in rows} != {len(instance["columns"])}:
        return False
    if set("".join(rows)) - set("#."):
        return False
    columns = ["".join(row[c] for row in rows) for c in range(len(rows[0]))]
    return all(
        [len(run) for run in re.findall("#+", line)] == clue
        for line, clue in zip([*rows, *columns], [*instance["rows"], *instance["columns"]], strict=True)
    )


def leads_out(instance: dict[str, Any], text: str) -> bool:
    cells = {complex(c, r): cell for r, row in enumerate(instance["grid"]) for c, cell in enumerate(row) if cell != "#"}
    (start,), (goal,) = ([place for place, cell in cells.items() if cell == symbol] for symbol in "SG")
    steps = {"U": -1j, "D": 1j, "L": -1, "R": 1}
    moves = re.sub(r"[ \t\r\n]", "", text)
    place = start
    for move in moves:
        if move not in steps or place + steps[move] not in cells:
            return False
        place += steps[move]
    reached, fewest = {start}, 0
    while goal not in reached:
        reached |= {a + step for a in reached for step in steps.values()} & set(cells)
        fewest += 1
    return place == goal and (len(moves) == fewest or not instance["shortest"])


def is_output(instance: dict[str, Any], text: str) -> bool:
    rows = lines(text)
    return rows == ["".join(map(str, row)) for row in instance["output"]]


def says_who(instance: dict[str, Any], text: str) -> bool:
    """Reads the answer by a pattern; people are true or false in the order in which the puzzle lists them."""
    pattern = r"[ \t\r\n]*([A-Z][a-z]+)[ \t\r\n]*:[ \t\r\n]*(knight|knave)[ \t\r\n]*"
    parts = [re.fullmatch(pattern, part) for part in text.split(",")]
    named = [(part[1], part[2] == "knight") for part in parts if part]
    if len(named) != len(parts) or sorted(name for name, _ in named) != sorted(instance["people"]):
        return False
    knights = [dict(named)[name] for name in instance["people"]]
    return all(truth(s, knights) == k for s, k in zip(instance["statements"], knights, strict=True))


def truth(statement: list[Any], knights: list[bool]) -> bool:
    form, *rest = statement
    table: dict[str, Callable[..., bool]] = {
        "not": lambda a: not a,
        "and": lambda a, b: a and b,
        "or": lambda a, b: a or b,
        "if": lambda a, b: b or not a,
    }
    if form in table:
        return table[form](*(truth(part, knights) for part in rest))
    numbers: dict[str, Callable[..., bool]] = {
        "knight": lambda i: knights[i],
        "same": lambda i, j: knights[i] is knights[j],
        "exactly": lambda k: knights.count(True) == k,
        "at_least": lambda k: knights.count(True) >= k,
    }
    return numbers[form](*rest)


CHECKERS: dict[str, Callable[[dict[str, Any], str], bool]] = {
    "arc": is_output,
    "countdown": lambda instance, text: reaches(instance, text, instance["target"], instance["use_all"]),
    "knights": says_who,
    "maze": leads_out,
    "nonogram": fits_clues,
    "sudoku": fills_sudoku,
    "twenty_four": lambda instance, text: reaches(instance, text, 24, True),
}
ALPHABET = "0123456789+-*/() \n.#SGUDLRkn:,A\u0663\u00a0\uff11"


def changes(text: str) -> Iterator[str]:
    """Every text that one deletion, insertion, replacement or swap of neighbours makes."""
    for at in range(len(text) + 1):
        yield text[:at] + text[at + 1 :]
        yield text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
        for letter in ALPHABET:
            yield text[:at] + letter + text[at:]
            yield text[:at] + letter + text[at + 1 :]


@pytest.mark.parametrize("name", GAMES)
def test_every_change_of_a_right_answer(name: str) -> None:
    rejected = 0
    for level, seed in ((1, 1), (1, 2), (2, 3), (2, 4)):
        problem = GAMES[name].generate(seed, level)
        witness = problem["metadata"]["witness"]
        assert CHECKERS[name](problem["answer"], witness)
        for text in set(changes(witness)):
            right = judge(name, problem["answer"], text).value == 1
            assert right == CHECKERS[name](problem["answer"], text), (problem["answer"], text)
            rejected += not right
    assert rejected > 300


expressions = st.lists(
    st.sampled_from(["1", "2", "3", "4", "12", "0", "00", "+", "-", "*", "/", "//", "**", "(", ")", " ", "\n"]), max_size=14
).map("".join) | st.recursive(
    st.sampled_from("1234"), lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({''.join(t)})")
)


@settings(deadline=None, max_examples=400)
@given(expressions, st.booleans(), st.integers(0, 12))
def test_expressions_as_python_reads_them(text: str, use_all: bool, target: int) -> None:
    instance = {"numbers": [1, 2, 3, 4, 4], "target": target, "use_all": use_all}
    assert (judge("countdown", instance, text).value == 1) == reaches(instance, text, target, use_all)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 13), min_size=4, max_size=4))
def test_the_24_solver_against_all_expressions(numbers: list[int]) -> None:
    values: set[Fraction] = set()
    for a, b, c, d in set(permutations(map(Fraction, numbers))):
        pairs = {(left, right) for left in joined(a, b) for right in joined(c, d)}
        chains = {y for x in joined(a, b) for y in joined(x, c)}
        values |= {v for left, right in pairs for v in joined(left, right)} | {v for y in chains for v in joined(y, d)}
    found = GAMES["twenty_four"].solve({"numbers": numbers}, 3)
    assert bool(found) == (24 in values)
    assert all(judge("twenty_four", {"numbers": numbers}, text).value == 1 for text in found)


def joined(a: Fraction, b: Fraction) -> set[Fraction]:
    return {a + b, a - b, b - a, a * b, *([a / b] if b else []), *([b / a] if a else [])}


@settings(deadline=None, max_examples=5)
@given(seeds)
def test_small_grid_puzzles_have_one_solution_of_all_fillings(seed: int) -> None:
    sudoku = GAMES["sudoku"].generate(seed, 1)["answer"]
    options = [
        ["".join(p) for p in permutations("1234") if all(g in (".", d) for d, g in zip(p, row, strict=True))]
        for row in sudoku["givens"]
    ]
    assert sum(fills_sudoku(sudoku, "\n".join(rows)) for rows in product(*options)) == 1
    nonogram = GAMES["nonogram"].generate(seed, 1)["answer"]
    lines_ = ["".join(cells) for cells in product("#.", repeat=4)]
    fitting = [[x for x in lines_ if [len(run) for run in re.findall("#+", x)] == clue] for clue in nonogram["rows"]]
    assert sum(fits_clues(nonogram, "\n".join(rows)) for rows in product(*fitting)) == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), seeds)
def test_an_island_has_one_solution_and_the_prompt_says_the_same(level: int, seed: int) -> None:
    problem = GAMES["knights"].generate(seed, level)
    people, said = problem["answer"]["people"], re.findall(r'^(\w+) says: "(.*)\."$', problem["prompt"], re.M)
    assert [name for name, _ in said] == people
    fits = []
    for kinds in product((True, False), repeat=len(people)):
        knights = dict(zip(people, kinds, strict=True))
        if all(in_words(sentence, name, knights) == knights[name] for name, sentence in said):
            fits.append(", ".join(f"{name}: {'knight' if k else 'knave'}" for name, k in knights.items()))
    assert fits == [problem["metadata"]["witness"]]
    assert [text for text in fits if says_who(problem["answer"], text)] == fits


def in_words(text: str, speaker: str, knights: dict[str, bool]) -> bool:
    """Truth of an English sentence of the prompt."""
    text = text[0].lower() + text[1:] if text.startswith(("If", "Exactly", "At")) else text
    if found := re.fullmatch("if (.*) then (.*)", text):
        return not in_words(found[1], speaker, knights) or in_words(found[2], speaker, knights)
    for word, join in ((" or ", any), (" and ", all)):
        halves = text.split(word)
        for at in range(1, len(halves)):
            left, right = word.join(halves[:at]), word.join(halves[at:])
            if " " in left and re.search("kni|knave|kind", left) and re.search("kni|knave|kind", right):
                return join([in_words(left, speaker, knights), in_words(right, speaker, knights)])
    if found := re.fullmatch(r"(\w+) is a (knight|knave)", text):
        return knights[found[1]] == (found[2] == "knight")
    if found := re.fullmatch(r"(exactly|at least) (\d) of us (?:is a knight|are knights)", text):
        return sum(knights.values()) == int(found[2]) or (found[1] == "at least" and sum(knights.values()) > int(found[2]))
    found = re.fullmatch(r"(\w+) and (\w+) are of (the same kind|different kinds)", text)
    assert found, text
    a, b = (knights[speaker if name == "I" else name] for name in (found[1], found[2]))
    return (a == b) == (found[3] == "the same kind")


@settings(deadline=None, max_examples=8)
@given(seeds)
def test_no_other_arc_rule_explains_the_examples(seed: int) -> None:
    """All chains of two steps, applied plainly one by one; the generator's search prunes."""
    problem = GAMES["arc"].generate(seed, 3)
    grid = lambda rows: tuple(map(tuple, rows))  # noqa: E731
    examples = tuple((grid(pair["input"]), grid(pair["output"])) for pair in problem["answer"]["train"])
    test, expected = grid(problem["answer"]["input"]), grid(problem["answer"]["output"])
    made = Rule(tuple(problem["metadata"]["rule"]), {})
    assert all(made(given_) == output for given_, output in examples) and made(test) == expected
    for steps in [(a,) for a in TRANSFORMATIONS] + list(product(TRANSFORMATIONS, repeat=2)):
        rule = Rule(steps, {})
        if all(rule(given_) == output for given_, output in examples):
            assert len(steps) == 2 and rule(test) == expected
    assert {output for _, output in explanations(Task(examples, test), 2)} == {expected}


def test_all_solutions_of_a_puzzle_with_several_are_right() -> None:
    several: dict[str, Any] = {
        "sudoku": {"givens": ["12..", "34..", "....", "...."]},
        "nonogram": {"rows": [[1], [1]], "columns": [[1], [1]]},
        "maze": {"grid": ["S..", "...", "..G"], "shortest": True},
        "knights": {"people": ["Ada", "Ben"], "statements": [["not", ["knight", 1]], ["not", ["knight", 0]]]},
        "countdown": {"numbers": [1, 2, 3, 4], "target": 10, "use_all": False},
    }
    for (name, instance), least in zip(several.items(), (5, 2, 6, 2, 5), strict=True):
        found = GAMES[name].solve(instance, 50)
        assert len(found) >= least
        assert all(judge(name, instance, text).value == 1 and CHECKERS[name](instance, text) for text in found)
    assert judge("arc", {"output": [[1, 2], [0, 3]]}, "1 2\n0 3").value == 1  # a row of ARC's own files
