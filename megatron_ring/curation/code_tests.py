"""Tests of code problems: broken ones are removed, equal ones stay once, their number and size are bounded."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from megatron_ring.curation.options import Clean
from megatron_ring.errors import UserError
from megatron_ring.rewards.code_formats import Case, CodeTests, read_tests

_CUT = re.compile(r"[^.\s][ \t]?(?:\.\.\.|…)[ \t]*(?:$|\n|\"[\]}]*$)")
_MARK = re.compile(
    r"[<(\[](?:output |input |test )?(?:truncated|omitted|snip)[^\n]{0,40}|\.\.\.\s*\(?\s*(?:truncated|omitted"
    r"|\d+ (?:more|characters|lines|chars))"
    r"|\[\.\.\.\]",
    re.IGNORECASE,
)
_LONE_DOTS = re.compile(r"^[ \t]*(?:\.\.\.|…)[ \t]*$", re.MULTILINE)
_GRID = re.compile(r"[.#*@]{4,}|^[.#*@][.#*@XxOoSTEse\d]{1,2}$", re.MULTILINE)
_END_SPACE = re.compile(r"[^\S\n]+$", re.MULTILINE)


def cleaned_tests(answer: Any, options: Clean) -> tuple[Any, dict[str, int]]:
    """The tests of a problem in our own form, and how many were removed or changed, by reason.

    Unit tests are left as they are.

    Raises:
        UserError: no sound tests are left, or too few.
    """
    tests = read_tests(answer)
    if tests.kind == "unit":
        return answer, {}
    removed: Counter[str] = Counter()
    cases: list[Case] = []
    seen: set[tuple[str, str]] = set()
    outputs: dict[str, set[str]] = {}
    sound = []
    for case in tests.cases:
        whole = _without_end_space(case) if tests.kind == "stdio" else case
        removed["tests_whitespace"] += whole != case
        reason = _broken(whole, tests.kind == "stdio", options)
        if reason:
            removed[reason] += 1
            continue
        sound.append(whole)
        outputs.setdefault(_key(whole.given), set()).add(_key(whole.expected))
    for case in sound:
        given, expected = _key(case.given), _key(case.expected)
        if len(outputs[given]) > 1:
            removed["tests_conflicting"] += 1
        elif (given, expected) in seen:
            removed["tests_repeated"] += 1
        elif len(cases) == options.max_tests:
            removed["tests_beyond_maximum"] += 1
        else:
            seen.add((given, expected))
            cases.append(case)
    removed = +removed
    if len(cases) < options.min_tests:
        said = ", ".join(f"{count} {reason.removeprefix('tests_')}" for reason, count in removed.items())
        raise UserError(f"{len(cases)} of {len(tests.cases)} tests are sound{f' ({said})' if said else ''}")
    written = _written(tests, cases, answer)
    read_tests(written)  # what was removed may leave none that tells right from wrong
    return written, dict(removed)


def _without_end_space(case: Case) -> Case:
    given, expected = (
        _END_SPACE.sub("", text.replace("\r\n", "\n").replace("\xa0", " ")) for text in (case.given, case.expected)
    )
    return Case(given, expected)


def _broken(case: Case, stdio: bool, options: Clean) -> str | None:
    """Why a test is of no use."""
    texts = (case.given, case.expected) if stdio else (_key(case.given), _key(case.expected))
    if sum(map(len, texts)) > options.max_test_characters:
        return "tests_too_large"
    for text in texts:
        grid = _GRID.search(_LONE_DOTS.sub("", text)) is not None
        if _MARK.search(text) or (not grid and (_CUT.search(text) or _LONE_DOTS.search(text))):
            return "tests_ellipsis"
        if stdio and "\\n" in text and "\n" not in text.strip("\n"):
            return "tests_line_breaks"
    if stdio and not case.given.strip() and not case.expected.strip():
        return "tests_empty"
    return None


def _key(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _written(tests: CodeTests, cases: list[Case], answer: Any) -> dict[str, Any]:
    more: dict[str, Any] = {"language": tests.language} if tests.language and tests.kind == "stdio" else {}
    if isinstance(answer, dict) and answer.get("time_limit"):
        more["time_limit"] = tests.seconds
    if tests.checker is not None:
        more["checker"] = tests.checker
    if tests.kind == "stdio":
        return {"tests": [{"input": case.given, "output": case.expected} for case in cases], **more}
    listed = [{"args": case.given, "expected": case.expected} for case in cases]
    return {"fn_name": tests.name, "tests": listed, **more}
