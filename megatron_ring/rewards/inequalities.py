r"""Inequalities in one variable as intervals: `x > 2`, `1 \le x < 3`, `|x - 1| < 2`, `x \ne 3`."""

from __future__ import annotations

import re

from megatron_ring.rewards.answer_parts import Answer, is_variable, split

_RELATIONS = frozenset({"<", ">", "\\le", "\\ge"})
_EXCLUDED = re.compile(
    r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\\setminus|\\backslash|-)\s*\\\{([^,{}]+)\\\}|([a-z]) ?\\ne ?([^,<>=\\]+|\\frac[^,<>=]+)"
)
_ABSOLUTE = re.compile(r"\|\s*([a-z])\s*(?:([+-])\s*([^|]+?))?\s*\|")


def as_interval(text: str) -> Answer | None:
    """An inequality as an interval, `x \\ne a` and `\\mathbb{R} \\setminus \\{a\\}` as two."""
    excluded = _EXCLUDED.fullmatch(text)
    if excluded is not None:
        variable, value = ("", excluded[1]) if excluded[1] else (excluded[2], excluded[3])
        bounds = [Answer("atom", end, end) for end in ("-\\infty", value, "\\infty")]
        pieces = [Answer("sequence", text, items=tuple(bounds[at : at + 2]), brackets="()") for at in (0, 1)]
        return Answer("union", text, items=tuple(pieces), name=variable)
    found: list[str] = []
    parts = split(text, _RELATIONS, found)
    if len(parts) not in (2, 3) or not all(parts):
        return None
    if len({relation in ("<", "\\le") for relation in found}) > 1:
        return None
    if found[0] in (">", "\\ge"):
        parts, found = parts[::-1], found[::-1]
    infinite = "\\infty"
    if len(parts) == 2 and (_ABSOLUTE.fullmatch(parts[0]) or _ABSOLUTE.fullmatch(parts[1])):
        return _distance(text, parts, found[0])
    if len(parts) == 3:
        (low, name, high), (left, right) = parts, found
    elif is_variable(parts[0]):
        (name, high), low, left, right = parts, "-" + infinite, "<", found[0]
    else:
        (low, name), high, left, right = parts, infinite, found[0], "<"
    if not is_variable(name):
        return None
    brackets = ("[" if "le" in left or "ge" in left else "(") + ("]" if "le" in right or "ge" in right else ")")
    ends = (Answer("atom", low, low), Answer("atom", high, high))
    return Answer("sequence", text, items=ends, brackets=brackets, name=name)


def _distance(text: str, parts: list[str], relation: str) -> Answer:
    """`|x - c| < r` as an interval around c, `|x - c| > r` as the two beyond it."""
    within = _ABSOLUTE.fullmatch(parts[0])
    match = within or _ABSOLUTE.fullmatch(parts[1])
    assert match is not None
    radius = parts[1] if within else parts[0]
    centre = "0" if match[2] is None else f"({match[3]})" if match[2] == "-" else f"-({match[3]})"
    closed = "le" in relation or "ge" in relation
    low, high = (Answer("atom", end, end) for end in (f"{centre}-({radius})", f"{centre}+({radius})"))
    if within:
        return Answer("sequence", text, items=(low, high), brackets="[]" if closed else "()", name=match[1])
    ends = [Answer("atom", end, end) for end in ("-\\infty", "\\infty")]
    pieces = (
        Answer("sequence", text, items=(ends[0], low), brackets="(]" if closed else "()"),
        Answer("sequence", text, items=(high, ends[1]), brackets="[)" if closed else "()"),
    )
    return Answer("union", text, items=pieces, name=match[1])
