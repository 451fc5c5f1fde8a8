r"""Knights and knaves: who tells the truth? Statements are checked, not a stored assignment.

A statement is nested lists: ["knight", i], ["same", i, j], ["exactly", k], ["at_least", k], ["not", s], ["and", s, t],
["or", s, t], ["if", s, t], with people counted from 0. The answer names everybody in the last `\boxed{...}`. Generated
puzzles have one solution.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from megatron_ring.rewards.logic.game import (
    Game,
    MalformedInstance,
    Violation,
    boxed,
    boxed_score,
    excerpt,
    field_of,
    generator_of,
    make_problem,
    whole_number,
)

NAME = "knights"
# fmt: off
PEOPLE = (
    "Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "June", "Kurt", "Lena", "Mona", "Nils",
    "Olga", "Paul", "Rosa", "Sam", "Tina", "Uwe", "Vera", "Will",
)
# fmt: on
MAX_PEOPLE = 12
MAX_DEPTH = 4
_NAME = re.compile(r"[A-Z][a-z]{1,15}")
_BLANKS = " \t\r\n"
# Form of a statement -> what follows: a person, a count of people, or another statement.
_FORMS: dict[str, tuple[str, ...]] = {
    "knight": ("person",),
    "same": ("person", "person"),
    "exactly": ("count",),
    "at_least": ("count",),
    "not": ("statement",),
    "and": ("statement", "statement"),
    "or": ("statement", "statement"),
    "if": ("statement", "statement"),
}
Statement = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Island:
    """The people and what each of them says."""

    people: tuple[str, ...]
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """How many people, the share of statements joined of two, and the share that counts or compares."""

    people: int
    compound: float
    counting: float


LEVELS = {
    1: Level(3, 0.0, 0.2),
    2: Level(4, 0.3, 0.2),
    3: Level(5, 0.5, 0.3),
    4: Level(6, 0.7, 0.3),
    5: Level(8, 0.9, 0.3),
}


def generate(seed: int, difficulty: int) -> dict[str, Any]:
    """Statements are drawn until exactly one assignment fits them all; all assignments are tried."""
    rng = generator_of(NAME, seed, difficulty)
    level = LEVELS[difficulty]
    people = tuple(rng.sample(PEOPLE, level.people))
    while True:
        island = Island(people, tuple(_random_statement(rng, level, speaker) for speaker in range(level.people)))
        solutions = _solutions(island)
        solution = next(solutions, None)
        if solution is not None and next(solutions, None) is None:
            break
    sentences = [_sentence(island, statement, speaker) for speaker, statement in enumerate(island.statements)]
    said = "\n".join(f'{name} says: "{text[0].upper()}{text[1:]}."' for name, text in zip(people, sentences, strict=True))
    prompt = (
        "On an island everybody is either a knight or a knave. Whatever a knight says is true, whatever a knave says is "
        f'false. You meet {", ".join(people[:-1])} and {people[-1]}; "we" and "us" mean these {len(people)} people, '
        f'"or" includes the case of both, and "if A then B" is false only when A is true and B is false.\n\n{said}\n\n'
        "Who is a knight and who is a knave? Name everybody exactly once, in any order, alone in \\boxed{}, written as in "
        f"\\boxed{{{people[0]}: knave, {people[1]}: knight}} but with all {len(people)} people."
    )
    answer = {"people": list(people), "statements": [_as_lists(statement) for statement in island.statements]}
    return make_problem(NAME, seed, difficulty, prompt, answer, _written(island, solution))


def read_island(answer: Any) -> Island:
    """Check an instance. Raises `MalformedInstance`."""
    people, statements = field_of(answer, "people"), field_of(answer, "statements")
    if not isinstance(people, list) or not 1 <= len(people) <= MAX_PEOPLE:
        raise MalformedInstance(f"'people' must be a list of 1 to {MAX_PEOPLE} names")
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in people) or len(set(people)) < len(people):
        raise MalformedInstance("'people' must be different names, each a capital and small letters")
    if not isinstance(statements, list) or len(statements) != len(people):
        raise MalformedInstance("'statements' must be a list with one statement for each person")
    return Island(tuple(people), tuple(_read_statement(statement, len(people), MAX_DEPTH) for statement in statements))


def check(island: Island, text: str) -> None:
    """Raise `Violation` unless the text says of everybody what they are, and all statements fit."""
    kinds: dict[str, bool] = {}
    for part in text.split(","):
        name, colon, kind = (piece.strip(_BLANKS) for piece in part.partition(":"))
        if not colon or kind not in ("knight", "knave"):
            raise Violation(f"{excerpt(part.strip(_BLANKS))} is not of the form NAME: knight or NAME: knave")
        if name not in island.people:
            raise Violation(f"{excerpt(name)} is not one of the people")
        if name in kinds:
            raise Violation(f"{name} is named twice")
        kinds[name] = kind == "knight"
    missing = [name for name in island.people if name not in kinds]
    if missing:
        raise Violation(f"{missing[0]} is not named")
    knights = [kinds[name] for name in island.people]
    for name, knight, statement in zip(island.people, knights, island.statements, strict=True):
        if holds(statement, knights) != knight:
            raise Violation(f"{name} would be a {'knight who lies' if knight else 'knave who tells the truth'}")


def solve(answer: Any, limit: int) -> list[str]:
    """Up to `limit` assignments that fit, out of all."""
    island = read_island(answer)
    found = []
    for knights in _solutions(island):
        found.append(_written(island, knights))
        if len(found) == limit:
            break
    return found


def holds(statement: Statement, knights: Sequence[bool]) -> bool:
    """Whether a statement is true where person i is a knight exactly if `knights[i]`."""
    form, first, second = statement[0], statement[1], statement[-1]
    if form == "knight":
        return knights[first]
    if form == "same":
        return knights[first] == knights[second]
    if form == "exactly":
        return sum(knights) == first
    if form == "at_least":
        return sum(knights) >= first
    if form == "not":
        return not holds(first, knights)
    if form == "and":
        return holds(first, knights) and holds(second, knights)
    if form == "or":
        return holds(first, knights) or holds(second, knights)
    return not holds(first, knights) or holds(second, knights)


def _solutions(island: Island) -> Iterator[tuple[bool, ...]]:
    for knights in product((True, False), repeat=len(island.people)):
        if all(holds(statement, knights) == knight for statement, knight in zip(island.statements, knights, strict=True)):
            yield knights


def _written(island: Island, knights: Sequence[bool]) -> str:
    pairs = zip(island.people, knights, strict=True)
    return ", ".join(f"{name}: {'knight' if knight else 'knave'}" for name, knight in pairs)


def _read_statement(value: Any, people: int, depth: int) -> Statement:
    form = value[0] if isinstance(value, list) and value else None
    if not isinstance(form, str) or form not in _FORMS or len(value) != len(_FORMS[form]) + 1:
        raise MalformedInstance(f"a statement must be a list such as {['knight', 0]}, with one of {', '.join(_FORMS)}")
    if depth == 0:
        raise MalformedInstance(f"a statement nests more than {MAX_DEPTH} deep")
    parts: list[Any] = []
    for kind, part in zip(_FORMS[form], value[1:], strict=True):
        if kind == "statement":
            parts.append(_read_statement(part, people, depth - 1))
        else:
            parts.append(whole_number(part, "statements", 0, people - 1 if kind == "person" else people))
    return (form, *parts)


def _as_lists(statement: Statement) -> list[Any]:
    return [_as_lists(part) if isinstance(part, tuple) else part for part in statement]


def _random_statement(rng: random.Random, level: Level, speaker: int) -> Statement:
    if rng.random() < level.compound:
        form = rng.choice(("and", "or", "if"))
        first, second = _simple_statement(rng, level, speaker), _simple_statement(rng, level, speaker)
        while second == first or ("not", second) == first or ("not", first) == second:
            second = _simple_statement(rng, level, speaker)
        return (form, first, second)
    return _simple_statement(rng, level, speaker)


def _simple_statement(rng: random.Random, level: Level, speaker: int) -> Statement:
    """Never about the speaker alone: `I am a knight` says nothing, and `I am a knave` nobody can say."""
    others = [person for person in range(level.people) if person != speaker]
    if rng.random() < level.counting:
        form = rng.choice(("same", "exactly", "at_least"))
        if form == "same":
            a, b = sorted(rng.sample(range(level.people), 2))
            plain: Statement = ("same", a, b)
        else:
            plain = (form, rng.randint(1, level.people - 1))
    else:
        plain = ("knight", rng.choice(others))
    return ("not", plain) if plain[0] in ("knight", "same") and rng.random() < 0.5 else plain


def _sentence(island: Island, statement: Statement, speaker: int) -> str:
    """A statement in English, as the speaker says it."""
    form, first, second = statement[0], statement[1], statement[-1]
    if form == "not" and first[0] == "same":
        return _sentence(island, first, speaker).replace("the same kind", "different kinds")
    if form == "not":
        return f"{island.people[first[1]]} is a knave"
    if form == "knight":
        return f"{island.people[first]} is a knight"
    if form == "same":
        pair = [island.people[person] for person in (first, second) if person != speaker]
        return f"{' and '.join(pair) if len(pair) == 2 else pair[0] + ' and I'} are of the same kind"
    if form in ("exactly", "at_least"):
        return f"{form.replace('_', ' ')} {first} of us {'is a knight' if first == 1 else 'are knights'}"
    parts = [_sentence(island, part, speaker) for part in (first, second)]
    return f"if {parts[0]} then {parts[1]}" if form == "if" else f"{parts[0]} {form} {parts[1]}"


GAME = Game(NAME, generate, boxed_score(read_island, check), solve, boxed, read_island)
