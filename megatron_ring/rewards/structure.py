r"""What an answer is made of: tuples, intervals, sets, lists, unions, matrices and named values, down to its atoms.

Order counts in tuples and matrices and not in sets, lists (`1, 2`, `1 or 2`, `\pm 1`) and unions. A bracket's kind counts
in pairs, which may be intervals. Inequalities in one variable are intervals. `x = 5` is 5 with a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from megatron_ring.rewards.exact import parse_number
from megatron_ring.rewards.normalise import closes_at, unwrap
from megatron_ring.rewards.surds import evaluate, exact_agree

Kind = Literal["atom", "equation", "sequence", "set", "list", "union", "matrix"]
Decide = Callable[[str, str], bool | None]

_MAX_DEPTH = 6
_MAX_PAIRS = 400

_TOKEN = re.compile(
    r"\\begin\s*\{[a-z]+\}|\\end\s*\{[a-z]+\}|\\[{}]|\\[A-Za-z]+|\\.|[()\[\]{}]| (?:or|and)(?= )|[,;=<>&]", re.DOTALL
)
_OPENING = ("(", "[", "{", "\\{")
_CLOSING = (")", "]", "}", "\\}")
_COMMAS = frozenset({",", ";", " or", " and"})
_RELATIONS = frozenset({"<", ">", "\\le", "\\ge"})
_VARIABLE = re.compile(r"[A-Za-z]|\\[a-z]+")
_NOT_VARIABLES = frozenset({"e", "i", "\\pi", "\\infty"})
_ARGUMENTS = re.compile(r"(?<=[A-Za-z'])\s*\([^()]{1,40}\)|_\s*(?:\w|\{[^{}]*\})|\\text\s*\{[^{}]*\}")
_NAME = re.compile(r"[A-Za-z\\ +\-*/{}()|,':]{1,60}")
_BUILDER = re.compile(
    r"[a-z](?:\s*\\in\s*\\(?:mathbb\s*\{?\s*R\s*\}?|R))?\s*(?:\\mid|\||:)\s*([^|:]*(?:<|>|\\le|\\ge)[^|:]*)"
)
_EXCLUDED = re.compile(
    r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\\setminus|\\backslash|-)\s*\\\{([^,{}]+)\\\}|([a-z]) ?\\ne ?([^,<>=\\]+|\\frac[^,<>=]+)"
)
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_MINUS_PLUS = re.compile(r"\\mp(?![A-Za-z])")
_ALL_REAL = re.compile(r"\\mathbb\s*\{?\s*R\s*\}?|\\R|(?:\\text\s*\{)?\s*all real numbers\s*\}?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ONE_GROUPED_NUMBER = re.compile(r"[^,\d(\[{]*\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])[^,]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Answer:
    """A part of an answer.

    Attributes:
        kind: what it is; "equation" is one whose left side is more than a name.
        text: the whole of it, with its name.
        value: the text of an atom, without its name.
        items: the parts; a matrix has its rows as sequences.
        brackets: of a sequence, both in one string; "()" for any that is not a pair.
        name: what stands before `=`, or the variable of an inequality.
    """

    kind: Kind
    text: str
    value: str = ""
    items: tuple[Answer, ...] = ()
    brackets: str = ""
    name: str = ""


def parse_answer(text: str, depth: int = 0) -> Answer:
    """The parts of a normalised answer. Beyond a few levels, or where nothing is recognised, it is an atom."""
    text = text.strip()
    while text.startswith("{") and closes_at(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    if depth > _MAX_DEPTH or parse_number(text) is not None:
        return Answer("atom", text, text)
    if _ALL_REAL.fullmatch(text):
        text = "(-\\infty,\\infty)"
    if _ONE_GROUPED_NUMBER.fullmatch(text):
        text = _THOUSANDS.sub("", text)
    unions = _split(text, frozenset({"\\cup"}))
    if len(unions) > 1:
        return Answer("union", text, items=tuple(parse_answer(part, depth + 1) for part in unions))
    return _enclosed(text, depth) or _listed(text, depth) or _related(text) or _named(text, depth) or _plain(text, depth)


def answers_agree(reference: Answer, given: Answer, decide: Decide) -> bool | None:
    """Whether the two are the same; None when that hangs on atoms that `decide` left open."""
    if "equation" in (reference.kind, given.kind):
        if not all(part.kind == "equation" or part.name for part in (reference, given)):
            return False
        return decide(reference.text, given.text)
    if reference.name and given.name and not _same_name(reference.name, given.name):
        return False
    reference, given = _alike(reference, given), _alike(given, reference)
    if reference.kind != given.kind:
        return None if {reference.kind, given.kind} & {"union"} else False
    if reference.kind == "atom":
        return decide(reference.value, given.value)
    if reference.kind in ("set", "list"):
        return _same_members(reference.items, given.items, decide)
    if reference.kind == "union":
        same = _same_members(reference.items, given.items, decide)
        return same if same or len(reference.items) == len(given.items) else None  # pieces may be joined
    if reference.brackets != given.brackets or len(reference.items) != len(given.items):
        return False
    return _all(answers_agree(a, b, decide) for a, b in zip(reference.items, given.items, strict=True))


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
            return replace(answer, kind="sequence", brackets=other.brackets)
        if other.kind == "set":
            return replace(answer, kind="set")
        if named and other.kind == "list" and not any(item.name for item in other.items):
            return replace(answer, kind="sequence", brackets="()")
        if other.kind in ("union", "list", "sequence") and _intervals(answer):
            return replace(answer, kind="union")
        other_names = {item.name for item in other.items}
        if other.kind == "list" and not any(names) and "" not in other_names and len(other_names) == len(other.items):
            return replace(answer, kind="sequence", brackets="()")
    if answer.kind == "set" and len(answer.items) == 1 and other.kind == "atom":
        return answer.items[0]
    return answer


def _intervals(answer: Answer) -> bool:
    return all(item.kind == "sequence" and item.name for item in answer.items)


def _same_members(reference: tuple[Answer, ...], given: tuple[Answer, ...], decide: Decide) -> bool | None:
    """Whether each has its equal on the other side."""
    exact = _exact_members(reference), _exact_members(given)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
    if len(reference) * len(given) > _MAX_PAIRS and len(reference) != len(given):
        return False
    if len(reference) * len(given) > _MAX_PAIRS:
        return _all(answers_agree(a, b, decide) for a, b in zip(reference, given, strict=True))
    table = [[answers_agree(a, b, decide) for b in given] for a in reference]
    rows = _all(_any(row) for row in table)
    columns = _all(_any([row[index] for row in table]) for index in range(len(given)))
    return _all([rows, columns])


def _exact_members(items: tuple[Answer, ...]) -> frozenset[Hashable] | None:
    """The members' values, where all are exact: a set of any size is then compared at once."""
    if any(item.kind != "atom" or item.name for item in items):
        return None
    values = [evaluate(item.value) for item in items]
    members = [None if value is None or value.rounded else frozenset(value.terms.items()) for value in values]
    return None if None in members else frozenset(members)


def _all(values: Iterable[bool | None]) -> bool | None:
    seen = set(values)
    return False if False in seen else None if None in seen else True


def _any(values: list[bool | None]) -> bool | None:
    return True if True in values else None if None in values else False


def _split(text: str, separators: frozenset[str], found: list[str] | None = None) -> list[str]:
    """Parts between separators that stand outside all brackets; `found` receives the separators."""
    parts, depth, start = [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _OPENING or token.startswith("\\begin"):
            depth += 1
        elif token in _CLOSING or token.startswith("\\end"):
            depth -= 1
        elif depth == 0 and token in separators:
            parts.append(text[start : match.start()].strip())
            start = match.end()
            if found is not None:
                found.append(token)
    parts.append(text[start:].strip())
    return parts


def _items(content: str, depth: int) -> tuple[Answer, ...]:
    if not content.strip():
        return ()
    if ", " in content:  # in `1,000, 2,000` only the spaced commas separate
        content = _THOUSANDS.sub("", content)
    return tuple(parse_answer(part, depth + 1) for part in _split(content, frozenset({",", ";"})))


def _enclosed(text: str, depth: int) -> Answer | None:
    """A set, tuple, interval or matrix that is the whole text."""
    if text in ("\\emptyset", "\\{\\}"):
        return Answer("set", text)
    if text.startswith("\\{") and closes_at(text, 1) == len(text) - 1 and text.endswith("\\}"):
        content = text[2:-2]
        builder = _BUILDER.fullmatch(content.strip())
        if builder is not None:
            return parse_answer(builder[1], depth + 1)
        if re.search(r"\\mid|\||:", content):
            return None
        return Answer("set", text, items=_items(content, depth))
    if text.startswith("\\begin{matrix}") and text.endswith("\\end{matrix}") and text.count("\\begin") == 1:
        content = text[len("\\begin{matrix}") : -len("\\end{matrix}")]
        rows = [row for row in content.split("\\\\") if row.strip()]
        return Answer("matrix", text, items=tuple(_row(row, depth) for row in rows))
    if text[:1] in ("(", "[") and closes_at(text, 0) == len(text) - 1 and text[-1] in ")]":
        content, brackets = text[1:-1], text[0] + text[-1]
    elif len(text) > 2 and (text[0] == "]" or text[-1] == "[") and text[0] in "[](" and text[-1] in "[])":
        content, brackets = text[1:-1], ("[" if text[0] == "[" else "(") + ("]" if text[-1] == "]" else ")")
    else:
        return None
    items = _items(content, depth)
    if brackets == "()" and len(items) == 1:
        return items[0]
    if len(items) < 2 and brackets != "[]":
        return None
    return Answer("sequence", text, items=items, brackets=brackets if len(items) == 2 else "()")


def _row(text: str, depth: int) -> Answer:
    cells = tuple(parse_answer(cell, depth + 1) for cell in text.split("&"))
    return Answer("sequence", text, items=cells, brackets="()")


def _listed(text: str, depth: int) -> Answer | None:
    found: list[str] = []
    spaced = _THOUSANDS.sub("", text) if ", " in text else text
    parts = _split(spaced, _COMMAS, found)
    if len(parts) == 1:
        return None
    parts = [re.sub(r"^(?:and|or) ", "", part) for part in parts if part]  # after `, and`
    items = tuple(parse_answer(part, depth + 1) for part in parts)
    if " and" in found and any(item.kind == "sequence" and item.name for item in items):
        return Answer("atom", text, text)  # both conditions, not either
    return items[0] if len(items) == 1 else Answer("list", text, items=items)


def _related(text: str) -> Answer | None:
    """An inequality as an interval, `x \\ne a` and `\\mathbb{R} \\setminus \\{a\\}` as two."""
    excluded = _EXCLUDED.fullmatch(text)
    if excluded is not None:
        variable, value = ("", excluded[1]) if excluded[1] else (excluded[2], excluded[3])
        bounds = [Answer("atom", end, end) for end in ("-\\infty", value, "\\infty")]
        pieces = [Answer("sequence", text, items=tuple(bounds[at : at + 2]), brackets="()") for at in (0, 1)]
        return Answer("union", text, items=tuple(pieces), name=variable)
    found: list[str] = []
    parts = _split(text, _RELATIONS, found)
    if len(parts) not in (2, 3) or not all(parts):
        return None
    if len({relation in ("<", "\\le") for relation in found}) > 1:
        return None
    if found[0] in (">", "\\ge"):
        parts, found = parts[::-1], found[::-1]
    infinite = "\\infty"
    if len(parts) == 3:
        (low, name, high), (left, right) = parts, found
    elif _is_variable(parts[0]):
        (name, high), low, left, right = parts, "-" + infinite, "<", found[0]
    else:
        (low, name), high, left, right = parts, infinite, found[0], "<"
    if not _is_variable(name):
        return None
    brackets = ("[" if "le" in left or "ge" in left else "(") + ("]" if "le" in right or "ge" in right else ")")
    ends = (Answer("atom", low, low), Answer("atom", high, high))
    return Answer("sequence", text, items=ends, brackets=brackets, name=name)


def _is_variable(text: str) -> bool:
    return _VARIABLE.fullmatch(text) is not None and text not in _NOT_VARIABLES


def _named(text: str, depth: int) -> Answer | None:
    """A value with a name before `=` or `\\in`, or an equation."""
    members = _split(text, frozenset({"\\in"}))
    if len(members) == 2 and _is_variable(members[0]):
        return replace(parse_answer(members[1], depth + 1), name=members[0], text=text)
    sides = _split(text, frozenset({"="}))
    if len(sides) == 1:
        return None
    if not all(sides) or len(sides) > 8:
        return Answer("equation", text, text)
    if len(sides) == 2 and _is_name(sides[1]) and not _is_name(sides[0]):
        sides.reverse()
    values = [value for value in map(evaluate, sides) if value is not None]
    if any(not exact_agree(values[0], value) for value in values[1:]):
        return Answer("equation", text, text)
    if not _is_name(sides[0]) and len(values) < len(sides):
        return Answer("equation", text, text)
    name = sides[0] if _is_name(sides[0]) else ""
    return replace(parse_answer(sides[-1], depth + 1), name=name, text=text)


def _is_name(text: str) -> bool:
    """Whether this may stand before `=` without being a condition on the value: letters, `f(2)`, `a+b`; not `2x`, `x^2`."""
    bare = _ARGUMENTS.sub("a", text)
    return _NAME.fullmatch(bare) is not None and re.search("[A-Za-z]", bare) is not None and evaluate(text) is None


def _same_name(a: str, b: str) -> bool:
    a, b = (re.sub(r"[\s{}]|\\text", "", name) for name in (a, b))
    # y = … and f(x) = … name the same thing, as do A and \text{Area}.
    return a == b or not (_is_variable(a) and _is_variable(b))


def _plain(text: str, depth: int) -> Answer:
    if len(_PLUS_MINUS.findall(text)) == 1 and depth <= _MAX_DEPTH:
        signs = (("+", "-"), ("-", "+"))
        both = (_PLUS_MINUS.sub(sign, _MINUS_PLUS.sub(opposite, text)) for sign, opposite in signs)
        return Answer("list", text, items=tuple(parse_answer(one, depth + 1) for one in both))
    inner = unwrap(text)
    if inner != text and re.search(r"\d", inner):
        return parse_answer(inner, depth + 1)
    return Answer("atom", text, text)
