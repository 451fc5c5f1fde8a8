"""Whether two answers are the same, part by part, once `structure` has taken them apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Protocol

from megatron_ring.rewards.answer_parts import Answer, is_variable
from megatron_ring.rewards.surds import evaluate

_MAX_PAIRS = 400
_PARAMETERS = frozenset("knmtlj")
_FAMILY_ORDER = re.compile(r"([A-Za-z])(?:_\{?(\d{1,3})\}?)?")
_INEQUALITY = re.compile(r"<|>|\\[lg]e(?![A-Za-z])")
_PRODUCT = re.compile(r"[a-z]{2}|abc|xyz")  # of variables
_INDEXED = re.compile(r"([A-Za-z]|\\[a-z]+)(?:_(\w{1,12}))?")


class Judge(Protocol):
    """Decides what is no longer structure; each answer is None where this judge leaves it open."""

    def equal(self, reference: str, given: str) -> bool | None:
        """Whether two atoms or equations are the same."""
        ...

    def same_family(self, reference: str, given: str, parameter: str) -> bool | None:
        """Whether two formulas give the same values over all integers."""
        ...

    def rounds_to(self, exact: str, decimal: str) -> bool | None:
        """Whether a decimal is the value of a formula, rounded."""
        ...


def answers_agree(reference: Answer, given: Answer, judge: Judge) -> bool | None:
    """Whether the two are the same; None when that hangs on what the judge left open."""
    if given.approximation:
        return _approximate_agrees(reference, given, judge)
    if reference.approximation:
        either = replace(reference, approximation=""), Answer("atom", reference.approximation, reference.approximation)
        return _any([answers_agree(one, given, judge) for one in either])
    if given.also:
        sides = [replace(given, also=()), *(Answer("atom", side, side) for side in given.also)]
        return _all(answers_agree(reference, side, judge) for side in sides)
    if "equation" in (reference.kind, given.kind):
        if not all(part.kind == "equation" or part.name for part in (reference, given)):
            return False
        return judge.equal(reference.text, given.text)
    if reference.name and given.name and not _same_name(reference.name, given.name):
        return _as_equations(reference, given, judge)
    if {reference.kind, given.kind} == {"set", "list"}:  # how often a member is named counts where the reference is a list
        given = replace(given, kind=reference.kind)
    reference, given = _alike(reference, given), _alike(given, reference)
    if reference.kind != given.kind:
        if {reference.kind, given.kind} == {"atom", "sequence"} and all(
            map(_INEQUALITY.search, (reference.text, given.text))
        ):
            return judge.equal(reference.text, given.text)  # x + y < 3 and y < 3 - x
        return None if {reference.kind, given.kind} & {"union"} else False
    if reference.kind == "atom":
        return _atoms_agree(reference, given, judge)
    if reference.kind == "set":
        return _same_members(reference.items, given.items, judge)
    if reference.kind in ("list", "cases"):
        return _same_list(reference.items, given.items, judge)
    if reference.kind == "union":
        same = _same_members(reference.items, given.items, judge)
        return same if same or len(reference.items) == len(given.items) else None  # pieces may be joined
    of_cases = reference.brackets == given.brackets == "if"
    if of_cases and "otherwise" in (reference.items[1].value, given.items[1].value):  # what the other cases leave
        return answers_agree(reference.items[0], given.items[0], judge)
    if reference.brackets != given.brackets or len(reference.items) != len(given.items):
        return False
    return _all(answers_agree(a, b, judge) for a, b in zip(reference.items, given.items, strict=True))


def _as_equations(reference: Answer, given: Answer, judge: Judge) -> bool | None:
    """`x + y = 3` and `y = 3 - x`, whose left sides look like names of different things."""
    if any("=" not in answer.text or answer.kind != "atom" or answer.also for answer in (reference, given)):
        return False
    if evaluate(reference.value) is not None and evaluate(given.value) is not None:
        return False
    return judge.equal(reference.text, given.text)


def _atoms_agree(reference: Answer, given: Answer, judge: Judge) -> bool | None:
    wanted, got = reference.value, given.value
    if not (reference.parameter or given.parameter):
        return judge.equal(wanted, got)
    if reference.parameter and given.parameter and reference.domain != given.domain:
        return False
    names = [
        answer.parameter or _guessed(answer.value, reference.parameter or given.parameter) for answer in (reference, given)
    ]
    wanted, got = (
        re.sub(rf"(?<![A-Za-z\\]){name}(?![A-Za-z])", names[0], text) if name else text
        for text, name in zip((wanted, got), names, strict=True)
    )
    if "N" in (reference.domain, given.domain):
        return judge.equal(wanted, got)
    return judge.same_family(wanted, got, names[0])


def _guessed(text: str, other: str) -> str:
    """The letter that stands for an integer in a formula that does not say so."""
    letters = set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", text))
    found = letters & {other} or letters & _PARAMETERS
    return found.pop() if len(found) == 1 else other


def _approximate_agrees(reference: Answer, given: Answer, judge: Judge) -> bool | None:
    """`2\\sqrt{3} \\approx 3.46`: the decimal is the value, rounded, and one of the two is the reference."""
    exact, decimal = replace(given, approximation=""), Answer("atom", given.approximation, given.approximation)
    if exact.kind != "atom" or exact.also:
        return False
    either = _any([answers_agree(reference, one, judge) for one in (exact, decimal)])
    return False if either is False else _all([either, judge.rounds_to(exact.value, decimal.value)])


def _alike(answer: Answer, other: Answer) -> Answer:
    """`answer` in the form of `other`, where one thing is written in two forms."""
    if answer.kind == "matrix" and other.kind == "sequence":
        rows = answer.items
        if len(rows) == 1:
            return replace(rows[0], brackets=other.brackets)
        if all(len(row.items) == 1 for row in rows):  # a column
            return Answer("sequence", answer.text, items=tuple(row.items[0] for row in rows), brackets=other.brackets)
    if answer.kind == "list":
        names = [item.name for item in answer.items]
        named = all(names) and len(set(names)) == len(names)
        if other.kind == "sequence" and (named or other.brackets == "()"):
            return replace(
                answer, kind="sequence", items=_in_order(answer.items) if named else answer.items, brackets=other.brackets
            )
        if named and other.kind == "list" and not any(item.name for item in other.items):
            return replace(answer, kind="sequence", items=_in_order(answer.items), brackets="()")
        if other.kind in ("union", "list", "sequence") and _intervals(answer):
            return replace(answer, kind="union")
        other_names = {item.name for item in other.items}
        if other.kind == "list" and not any(names) and "" not in other_names and len(other_names) == len(other.items):
            return replace(answer, kind="sequence", brackets="()")
    if answer.kind == "set" and len(answer.items) == 1 and other.kind == "atom":
        return answer.items[0]
    return answer


def _in_order(items: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """Named values as a tuple has them: x before y, x_1 before x_2. Names that are no such row stay as they are written."""
    keys = []
    for item in items:
        match = _FAMILY_ORDER.fullmatch(item.name.replace(" ", ""))
        if match is None:
            return items
        keys.append((match[1], int(match[2] or 0)))
    letters, indices = zip(*keys, strict=True)
    codes = sorted(map(ord, letters))
    row = codes == list(range(codes[0], codes[0] + len(codes)))
    if not (row or (len(set(letters)) == 1 and len(set(indices)) == len(indices))):
        return items
    return tuple(item for _, item in sorted(zip(keys, items, strict=True), key=lambda pair: pair[0]))


def _intervals(answer: Answer) -> bool:
    return all(item.kind == "sequence" and item.name for item in answer.items)


def _same_members(reference: tuple[Answer, ...], given: tuple[Answer, ...], judge: Judge) -> bool | None:
    """Whether each has its equal on the other side."""
    exact = _exact_members(reference), _exact_members(given)
    if exact[0] is not None and exact[1] is not None:
        return exact[0].keys() == exact[1].keys()
    if len(reference) * len(given) > _MAX_PAIRS:
        return _one_by_one(reference, given, judge)
    table = [[answers_agree(a, b, judge) for b in given] for a in reference]
    rows = _all(_any(row) for row in table)
    columns = _all(_any([row[index] for row in table]) for index in range(len(given)))
    return _all([rows, columns])


def _same_list(reference: tuple[Answer, ...], given: tuple[Answer, ...], judge: Judge) -> bool | None:
    """Whether each has a partner of its own on the other side: 1, 1, 2 is not 1, 2."""
    if len(reference) != len(given):
        return False
    exact = _exact_members(reference), _exact_members(given)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
    if len(reference) * len(given) > _MAX_PAIRS:
        return _one_by_one(reference, given, judge)
    left, open_ones = list(given), False
    for wanted in reference:
        row = [answers_agree(wanted, got, judge) for got in left]
        if True in row:
            del left[row.index(True)]
        elif None in row:
            open_ones = True
        else:
            return False
    return None if open_ones else True


def _one_by_one(reference: tuple[Answer, ...], given: tuple[Answer, ...], judge: Judge) -> bool | None:
    if len(reference) != len(given):
        return False
    return _all(answers_agree(a, b, judge) for a, b in zip(reference, given, strict=True))


def _exact_members(items: tuple[Answer, ...]) -> Counter[Hashable] | None:
    """The members' values, where all are exact: a set of any size is then compared at once."""
    if any(item.kind != "atom" or item.name or item.also or item.approximation or item.parameter for item in items):
        return None
    values = [evaluate(item.value) for item in items]
    members = [None if value is None or value.rounded else frozenset(value.terms.items()) for value in values]
    return None if None in members else Counter(members)


def _same_name(a: str, b: str) -> bool:
    """Whether two names may mean one thing. y and f(x) may, as may A and `\\text{Area}`; x and y, x_1 and x_2, x and xy or
    f(x) may not."""
    if a != b and (_made_with(a, b.strip()) or _made_with(b, a.strip())):
        return False
    a, b = (re.sub(r"[\s{}]|\\text", "", name) for name in (a, b))
    left, right = _INDEXED.fullmatch(a), _INDEXED.fullmatch(b)
    if a != b and any("+" in name or "-" in name for name in (a, b)):
        return False
    if a == b or left is None or right is None:
        return True
    if not (is_variable(left[1]) and is_variable(right[1])):
        return True
    return left[1] == right[1] and not (left[2] and right[2])


def _made_with(name: str, variable: str) -> bool:
    """Whether a name is an expression that the variable is a part of."""
    if not is_variable(variable) or name.strip() == variable or "_" in name:
        return False
    bare = re.sub(r"m?\\angle(?![A-Za-z])|[\s{}]", "", name)
    product = _PRODUCT.fullmatch(bare) is not None and variable in bare
    inside = re.search(rf"(?<![A-Za-z\\]){re.escape(variable)}(?![A-Za-z(])", name) is not None
    return bare != variable and (product or inside)


def _all(values: Iterable[bool | None]) -> bool | None:
    seen = set(values)
    return False if False in seen else None if None in seen else True


def _any(values: list[bool | None]) -> bool | None:
    return True if True in values else None if None in values else False
