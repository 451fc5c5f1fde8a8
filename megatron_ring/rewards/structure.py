r"""What an answer is made of: tuples, intervals, sets, lists, unions, matrices, cases and named values, down to its atoms.

Order counts in tuples and matrices and not in sets, lists (`1, 2`, `1 or 2`, `\pm 1`) and unions. A bracket's kind counts
in pairs, which may be intervals. Inequalities in one variable are intervals. `x = 5` is 5 with a name. `agreement`
compares what is read here.
"""

from __future__ import annotations

import re
from dataclasses import replace

from megatron_ring.rewards.answer_parts import Answer, is_variable, split
from megatron_ring.rewards.exact import parse_number
from megatron_ring.rewards.formula import variables
from megatron_ring.rewards.formula_parser import parse
from megatron_ring.rewards.inequalities import as_interval
from megatron_ring.rewards.normalise import closes_at, unwrap
from megatron_ring.rewards.surds import evaluate, exact_agree

_MAX_DEPTH = 6

_COMMAS = frozenset({",", ";", " or", " and"})
_ARGUMENTS = re.compile(r"(?<=[fghpqrsuvwA-Z'])\s*\([^()]{1,40}\)|_\s*(?:\w|\{[^{}]*\})|\\text\s*\{[^{}]*\}")
_NAME = re.compile(r"[A-Za-z\\ +\-*/{}()|,':]{1,60}")
_BUILDER = re.compile(
    r"[a-z](?:\s*\\in\s*\\(?:mathbb\s*\{?\s*R\s*\}?|R))?\s*(?:\\mid|\||:)\s*([^|:]*(?:<|>|\\le|\\ge)[^|:]*)"
)
_SYSTEM = re.compile(r"(?:\\\{\s*)?\\begin\{(cases|matrix)\}((?:(?!\\begin|\\end).)*)\\end\{\1\}", re.DOTALL)
_CONDITION = re.compile(r"^(?:\\text\s*\{\s*,?\s*(?:if|for|when|where)?\s*\}|if |for |when )\s*|^,\s*")
_BEFORE_CONDITION = re.compile(r",?\s*\\text\s*\{\s*,?\s*(?:if|for|when)\s*\}|,(?=[^,]*(?:<|>|=|\\le|\\ge|\\ne))")
_OTHERWISE = re.compile(r"(?:\\text\s*\{)?\s*(?:otherwise|else)\s*\}?")
_INTEGERS = re.compile(
    r"[\s,;(]{0,6}(?:\\text\s*\{[\s,(]*(?:where|for|with|for all|for any|for every|and)?\s*\}"
    r"|where|with|for(?: all| any| every)?|\\forall)?"
    r"\s*(?<![A-Za-z\\])([a-zA-Z])\s*(?:\\in\s*\\?(?:mathbb)?\{*\s*([ZN])\s*\}*"
    r"|(?:\\text\s*\{)?\s*(?:is an?|is any|an|any)?\s*(integer)s?\s*\}?)\s*\)?$"
)
_INTEGERS_FIRST = re.compile(
    r"[\s,;(]{0,6}(?:\\text\s*\{)?[\s,(]{0,6}(?:where|with|for)\s+(?:all|any|every|each|some|an)?\s*integers?\s*"
    r"(?:values? of)?[\s}]{0,6}([a-zA-Z])[\s})]{0,6}$"
)
_QUANTIFIED = re.compile(
    r"[\s,(]{0,6}(?:\\forall|(?:\\text\s*\{)?\s*for (?:all|every|any|each)(?![A-Za-z]))[\s}]*(?:\\text\s*\{)?\s*"
    r"(?:real|complex)?\s*(?:numbers?|values? of)?[\s}]*[a-z]?\s*(?:\\in\s*\\?(?:mathbb)?\{*\s*[RC]\s*\}*)?\)?$"
)
_DENIES = re.compile(r"\\(?:not|neg|lnot|ne|sim)|\b(?:not|never|wrong|incorrect|except|unless)\b")
_FAMILY_NAME = re.compile(r"[A-Za-z](?:_\{?\d{1,3}\}?)?")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_MINUS_PLUS = re.compile(r"\\mp(?![A-Za-z])")
_ALL_REAL = re.compile(r"\\mathbb\s*\{?\s*R\s*\}?|\\R|(?:\\text\s*\{)?\s*all real numbers\s*\}?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ONE_GROUPED_NUMBER = re.compile(r"[^,\d(\[{]*\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])[^,]*", re.ASCII)


def parse_answer(text: str, depth: int = 0) -> Answer:
    """The parts of a normalised answer. Beyond a few levels, or where nothing is recognised, it is an atom."""
    text = text.strip()
    while text.startswith("{") and closes_at(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    if depth > _MAX_DEPTH or parse_number(text) is not None:
        return Answer("atom", text, text)
    if depth == 0:
        integers = _INTEGERS.search(text) or _INTEGERS_FIRST.search(text)
        if integers is not None and integers.start() > 0 and integers[1] in text[: integers.start()]:
            domain = (integers.re is _INTEGERS and integers[2]) or "Z"
            return _with_parameter(parse_answer(text[: integers.start()].rstrip(" ,;("), 1), integers[1], domain)
        quantified = _QUANTIFIED.search(text)
        if quantified is not None and quantified.start() > 0:
            text = text[: quantified.start()].rstrip(" ,(")
    if _ALL_REAL.fullmatch(text):
        text = "(-\\infty,\\infty)"
    if _ONE_GROUPED_NUMBER.fullmatch(text):
        text = _THOUSANDS.sub("", text)
    unions = split(text, frozenset({"\\cup"}))
    if len(unions) > 1:
        return Answer("union", text, items=tuple(parse_answer(part, depth + 1) for part in unions))
    return (
        _system(text, depth)
        or _enclosed(text, depth)
        or _listed(text, depth)
        or as_interval(text)
        or _named(text, depth)
        or _plain(text, depth)
    )


def _with_parameter(answer: Answer, parameter: str, domain: str) -> Answer:
    if answer.kind == "atom":
        return replace(answer, parameter=parameter, domain=domain)
    return replace(answer, items=tuple(_with_parameter(item, parameter, domain) for item in answer.items))


def _items(content: str, depth: int) -> tuple[Answer, ...]:
    if not content.strip():
        return ()
    if ", " in content:  # in `1,000, 2,000` only the spaced commas separate
        content = _THOUSANDS.sub("", content)
    return tuple(parse_answer(part, depth + 1) for part in split(content, frozenset({",", ";"})))


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


def _system(text: str, depth: int) -> Answer | None:
    """A `cases` environment: equations that hold together, or values with their conditions."""
    found = _SYSTEM.fullmatch(text) if "\\begin" in text else None
    if found is None:
        return None
    rows = [row.strip() for row in found[2].split("\\\\") if row.strip()]
    pairs = [_value_and_condition(row) for row in rows]
    if found[1] == "cases" and len(rows) > 1 and all(pairs):
        items = []
        for value, condition in (pair for pair in pairs if pair is not None):
            second = "otherwise" if _OTHERWISE.fullmatch(condition) else condition
            parts = parse_answer(value.rstrip(", "), depth + 1), parse_answer(second, depth + 1)
            items.append(Answer("sequence", value, items=parts, brackets="if"))
        if sum(item.items[1].value == "otherwise" for item in items) < 2:
            return Answer("cases", text, items=tuple(items))
    named = tuple(parse_answer(row.replace("&", " "), depth + 1) for row in rows)
    if not all(item.name or item.kind == "equation" for item in named) or any(item.brackets for item in named):
        return None
    return named[0] if len(named) == 1 else Answer("list", text, items=named)


def _value_and_condition(row: str) -> tuple[str, str] | None:
    value, mark, condition = row.partition("&")
    if not mark:
        where = _BEFORE_CONDITION.search(row)
        if where is None:
            return None
        value, condition = row[: where.start()], row[where.end() :]
    condition = _CONDITION.sub("", _CONDITION.sub("", condition.strip()))
    return None if "&" in condition or condition.startswith("=") or not value.strip() else (value.strip(), condition.strip())


def _row(text: str, depth: int) -> Answer:
    cells = tuple(parse_answer(cell, depth + 1) for cell in text.split("&"))
    return Answer("sequence", text, items=cells, brackets="()")


def _listed(text: str, depth: int) -> Answer | None:
    found: list[str] = []
    spaced = _THOUSANDS.sub("", text) if ", " in text else text
    parts = split(spaced, _COMMAS, found)
    if len(parts) == 1:
        return None
    parts = [re.sub(r"^(?:and|or) ", "", part) for part in parts if part]  # after `, and`
    items = tuple(parse_answer(part, depth + 1) for part in parts)
    if " and" in found and any(item.kind == "sequence" and item.name for item in items):
        return _both(items, text) or Answer("atom", text, text)  # both conditions, not either
    return items[0] if len(items) == 1 else Answer("list", text, items=items)


def _both(items: tuple[Answer, ...], text: str) -> Answer | None:
    """`x > 2 and x < 5` as the interval between two numbers; None where it is none."""
    if len(items) != 2 or items[0].name != items[1].name or any(item.kind != "sequence" for item in items):
        return None
    above = [item for item in items if item.items[1].value == "\\infty"]
    below = [item for item in items if item.items[0].value == "-\\infty"]
    if len(above) != 1 or len(below) != 1 or above == below:
        return None
    low, high = above[0].items[0], below[0].items[1]
    values = [None if value is None else value.rational for value in map(evaluate, (low.value, high.value))]
    if values[0] is None or values[1] is None or values[0] >= values[1]:
        return None
    return replace(items[0], text=text, items=(low, high), brackets=above[0].brackets[0] + below[0].brackets[1])


def _named(text: str, depth: int) -> Answer | None:
    """A value with a name before `=` or `\\in`, or an equation."""
    members = split(text, frozenset({"\\in"}))
    if len(members) == 2 and is_variable(members[0]):
        return replace(parse_answer(members[1], depth + 1), name=members[0], text=text)
    members = split(text, frozenset({"\\equiv"}))
    if len(members) == 2 and _is_name(members[0]):
        return replace(parse_answer(members[1], depth + 1), name=members[0], text=text)
    found: list[str] = []
    sides = split(text, frozenset({"=", "\\approx"}), found)
    if len(sides) == 1:
        return None
    if found[-1] == "\\approx" and sides[-1]:
        exact = text[: text.rindex("\\approx")].strip()
        if not exact or _is_name(exact):
            return replace(parse_answer(sides[-1], depth + 1), name=exact, text=text)
        if found.count("\\approx") == 1 and parse_number(sides[-1]) is not None:
            return replace(parse_answer(exact, depth + 1), approximation=sides[-1], text=text)
    spoken = all(re.search(r"\w", side) for side in sides[:-1])  # not `x =/= 5`
    if "\\approx" in found or not (spoken and sides[-1]) or len(sides) > 8:
        return Answer("equation", text, text)
    return _chain(text, sides, depth)


def _chain(text: str, sides: list[str], depth: int) -> Answer:
    """`x = 3 + 4 = 7` is 7, called x."""
    if len(sides) == 2 and _is_name(sides[1]) and not _is_name(sides[0]):
        sides.reverse()
    values = [value for value in map(evaluate, sides) if value is not None]
    if any(not exact_agree(values[0], value) for value in values[1:]):
        return Answer("equation", text, text)
    if not _is_name(sides[0]) and len(values) < len(sides):
        return Answer("equation", text, text)
    if len(sides) == 2 and (point := _named_point(sides[0], sides[1], text, depth)) is not None:
        return point
    name = sides[0] if _is_name(sides[0]) else ""
    between = sides[1:-1]
    if between and evaluate(sides[-1]) is not None:  # in V = lwh = 24 a formula stands before the value
        between = [side for side in between if evaluate(side) is None and _is_constant(side)]
    return replace(parse_answer(sides[-1], depth + 1), name=name, text=text, also=tuple(between))


def _named_point(names: str, values: str, text: str, depth: int) -> Answer | None:
    """`(y, x) = (2, 3)` as the values of y and x, whose order the names say."""
    if names[:1] != "(" or values[:1] != "(" or closes_at(names, 0) != len(names) - 1:
        return None
    letters, value = split(names[1:-1], frozenset({","})), parse_answer(values, depth + 1)
    if value.kind != "sequence" or len(value.items) != len(letters) or not all(map(_FAMILY_NAME.fullmatch, letters)):
        return None
    named = (replace(item, name=letter) for item, letter in zip(value.items, letters, strict=True))
    return Answer("list", text, items=tuple(named))


def _is_constant(text: str) -> bool:
    reading = parse(text)
    return reading is not None and not variables(reading.loose)


def _is_name(text: str) -> bool:
    """Whether this may stand before `=` without being a condition on the value: letters, `f(2)`, `a+b`; not `2x`, `-x`."""
    bare = _ARGUMENTS.sub("a", text)
    named = _NAME.fullmatch(bare) is not None and not bare.startswith("-") and re.search("[A-Za-z]", bare) is not None
    return named and _DENIES.search(text) is None and evaluate(text) is None


def _plain(text: str, depth: int) -> Answer:
    if len(_PLUS_MINUS.findall(text)) == 1 and depth <= _MAX_DEPTH:
        signs = (("+", "-"), ("-", "+"))
        both = (_PLUS_MINUS.sub(sign, _MINUS_PLUS.sub(opposite, text)) for sign, opposite in signs)
        return Answer("list", text, items=tuple(parse_answer(one, depth + 1) for one in both))
    inner = unwrap(text)
    if inner != text and re.search(r"\d", inner):
        return parse_answer(inner, depth + 1)
    return Answer("atom", text, text)
