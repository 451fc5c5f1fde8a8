"""The tests of public data sets, each read into `CodeTests`. Every reader raises UserError that names what is wrong."""

from __future__ import annotations

import base64
import contextlib
import decimal
import json
import pickle
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_ring.errors import UserError
from megatron_ring.rewards.checkers import read_checker
from megatron_ring.rewards.code_unit import UnitPlan, plan_unit

DEFAULT_SECONDS = 6.0
MAX_SECONDS = 60.0
MAX_DIGITS = 50_000
LARGE = 1 << 16  # characters of a reference that is not read before it is used
# What harnesses for LeetCode-style problems put before the solution.
FUNCTION_SETUP = (
    "from typing import *\nfrom collections import *\nfrom functools import *\nfrom itertools import *\n"
    "from heapq import *\nfrom bisect import *\nfrom math import *\n"
    "import collections, functools, itertools, heapq, bisect, math, string, re, random, operator, copy\n"
)


@dataclass(frozen=True, slots=True)
class Case:
    """One test: stdin and stdout as text, or a call's arguments and the value it returns."""

    given: Any
    expected: Any


@dataclass(frozen=True, slots=True)
class CodeTests:
    """All tests of one problem.

    Attributes:
        kind: `stdio`: a program reads stdin and prints; `function`: `name` is called; `unit`: `test` is run.
        name: the function, or for unit tests the entry point (None: the tests call functions by their names).
        setup: trusted code that comes before the solution.
        test: trusted code that asserts; with an entry point it may define `check(candidate)`.
        plan: which names the solution supplies to it, and what of it runs.
        seconds: time limit of each run.
        language: the solution's, where the problem fixes it; None: what the response's code block says.
        checker: of programs: decides on their output, in place of comparing it (see `checkers`).
    """

    kind: Literal["stdio", "function", "unit"]
    cases: tuple[Case, ...] = ()
    name: str | None = None
    setup: str = ""
    test: str = ""
    plan: UnitPlan | None = None
    seconds: float = DEFAULT_SECONDS
    language: str | None = None
    checker: str | None = None


def read_tests(answer: Any) -> CodeTests:
    """Tests from a reference: `format` names a reader of `FORMATS`; without it the fields that only one has decide.

    Optional beside every format: `time_limit` (seconds for each test), `language`, and for programs `checker`.

    Raises:
        UserError: it is not a reference of a known form, or holds no test.
    """
    answer, name = _recognised(answer)
    try:
        tests = FORMATS[name](answer)
    except _MALFORMED as error:
        raise UserError(f"the reference is not of the form {name}: {type(error).__name__} {error}"[:200]) from None
    if not tests.cases and not tests.test.strip():
        raise UserError("the reference holds no tests")
    if tests.kind == "stdio" and not any(case.expected.strip() for case in tests.cases):
        raise UserError("no test expects any output: a program that does nothing would pass")
    if tests.kind == "function" and all(case.expected is None for case in tests.cases):
        raise UserError("every test expects None: a function that does nothing would pass")
    return tests


def check_tests(answer: Any) -> None:
    """Raise what `read_tests` would raise; of a reference with more than 64 KiB of text, whose tests take long to read and
    may be compressed, only what its form shows."""
    found, _ = _recognised(answer)
    if sum(len(value) for value in found.values() if isinstance(value, str)) <= LARGE:
        read_tests(answer)


def _recognised(answer: Any) -> tuple[Mapping[str, Any], str]:
    """A reference as an object, and the name of its form. Raises `UserError`."""
    if isinstance(answer, str):
        answer = _json(answer, "answer")
    if not isinstance(answer, Mapping):
        raise UserError(f"the reference must be an object, not {type(answer).__name__}")
    name = answer.get("format") or next((name for name, fields in _RECOGNISED if fields <= answer.keys()), None)
    if not isinstance(name, str) or name not in FORMATS:
        raise UserError(f"unknown reference format {name!r}: use one of {', '.join(sorted(FORMATS))}")
    return answer, name


def read_plain(answer: Mapping[str, Any]) -> CodeTests:
    """Our own: `tests` is a list of {input, output}, or with `fn_name` of {args, expected}; or Python that asserts, as one
    text or a list of them. JSON text is read as what it stands for."""
    name, tests = answer.get("fn_name"), answer["tests"]
    if isinstance(tests, str) and tests.lstrip()[:1] in ("[", "{", '"'):
        with contextlib.suppress(ValueError, RecursionError):
            tests = json.loads(tests, parse_int=whole_number)
    if isinstance(tests, Mapping) and "tests" in tests:
        tests = tests["tests"]
    if isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests):
        tests = "\n".join(tests)
    if isinstance(tests, str):
        return _unit(tests, answer.get("setup") or "", name or answer.get("entry_point"), answer)
    if not isinstance(tests, list):
        raise TypeError("tests must be a list or Python")
    if name:
        cases = tuple(Case(list(_json(test["args"], "args")), test["expected"]) for test in tests)
        return _function(name, cases, answer)
    return _stdio(((test["input"], test["output"]) for test in tests), answer)


def read_apps(answer: Mapping[str, Any]) -> CodeTests:
    """APPS and TACO: `input_output` holds `inputs`, `outputs` and, for functions, `fn_name`."""
    content = _json(answer["input_output"], "input_output")
    inputs, outputs, name = _list(content["inputs"]), _list(content["outputs"]), content.get("fn_name")
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs but {len(outputs)} outputs")
    if not name:
        return _stdio(zip(map(_text, inputs), map(_text, outputs), strict=True), answer)
    # A value is wrapped in a list of one, most of the time.
    unwrapped = (value[0] if isinstance(value, list) and len(value) == 1 else value for value in outputs)
    return _function(name, tuple(Case(list(a), b) for a, b in zip(inputs, unwrapped, strict=True)), answer)


def read_codecontests(answer: Mapping[str, Any]) -> CodeTests:
    """CodeContests: public, private and generated tests, each {input: [...], output: [...]}."""
    pairs = []
    for part in ("public_tests", "private_tests", "generated_tests"):
        tests = answer.get(part) or {"input": [], "output": []}
        pairs += list(zip(_list(tests["input"]), _list(tests["output"]), strict=True))
    return _stdio(iter(pairs), answer)


def read_livecodebench(answer: Mapping[str, Any]) -> CodeTests:
    """LiveCodeBench: public and private test cases of type `stdin` or `functional`; private ones may be compressed."""
    tests = list(_json(answer.get("public_test_cases") or [], "public_test_cases"))
    tests += _compressed(answer.get("private_test_cases") or [])
    if not any(test.get("testtype") == "functional" for test in tests):
        return _stdio(((test["input"], test["output"]) for test in tests), answer)
    metadata = _json(answer.get("metadata") or {}, "metadata")
    name = answer.get("fn_name") or metadata["func_name"]
    cases = tuple(
        Case([_value(line) for line in test["input"].split("\n") if line.strip()], _value(test["output"])) for test in tests
    )
    return _function(name, cases, answer)


def read_humaneval(answer: Mapping[str, Any]) -> CodeTests:
    """HumanEval: `test` defines `check(candidate)`, `prompt` holds imports and helpers that the solution may leave out."""
    return _unit(answer["test"], answer.get("prompt") or "", answer["entry_point"], answer)


FORMATS: dict[str, Callable[[Mapping[str, Any]], CodeTests]] = {
    "tests": read_plain,
    "apps": read_apps,
    "taco": read_apps,
    "codecontests": read_codecontests,
    "livecodebench": read_livecodebench,
    "humaneval": read_humaneval,
}
_RECOGNISED: tuple[tuple[str, frozenset[str]], ...] = (
    ("tests", frozenset({"tests"})),
    ("apps", frozenset({"input_output"})),
    ("livecodebench", frozenset({"public_test_cases"})),
    ("livecodebench", frozenset({"private_test_cases"})),
    ("codecontests", frozenset({"public_tests"})),
    ("humaneval", frozenset({"test", "entry_point"})),
)


# What readers run into where a reference is not of the form that they read.
_MALFORMED = (
    LookupError, TypeError, ValueError, AttributeError, OverflowError, EOFError, zlib.error, pickle.UnpicklingError,
    RecursionError,
)  # fmt: skip


class _NoGlobals(pickle.Unpickler):
    """LiveCodeBench pickles a string of JSON; a reference that wants any class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"refers to {module}.{name}")


def _compressed(tests: Any) -> list[Any]:
    """A list, its JSON, or base64 of zlib of a pickle of its JSON."""
    if not isinstance(tests, str):
        return list(tests)
    if not tests.lstrip().startswith("["):
        import io

        tests = _NoGlobals(io.BytesIO(zlib.decompress(base64.b64decode(tests)))).load()
    return list(_json(tests, "private_test_cases"))


def _json(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_int=whole_number)
    except (ValueError, RecursionError):
        raise UserError(f"the reference's {name} is not JSON") from None


def whole_number(digits: str) -> int:
    """An integer of up to 50,000 digits; Python's own reader stops at 4,300. Raises `ValueError` for a longer one."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of more than {MAX_DIGITS} digits")
    return int(digits) if len(digits) < 4000 else int(decimal.Decimal(digits))


def _value(text: str) -> Any:
    return json.loads(text, parse_int=whole_number)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):  # a text has letters where a list has tests
        raise TypeError(f"a list is wanted, not {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    """Some problems list their lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _seconds(answer: Mapping[str, Any]) -> float:
    seconds = answer.get("time_limit") or DEFAULT_SECONDS
    if isinstance(seconds, Mapping):  # CodeContests: {seconds, nanos}
        seconds = seconds.get("seconds", 0) + seconds.get("nanos", 0) / 1e9
    return min(max(float(seconds), 0.1), MAX_SECONDS)


def _stdio(pairs: Any, answer: Mapping[str, Any]) -> CodeTests:
    cases = tuple(Case(_text(given), _text(expected)) for given, expected in pairs)
    checker = read_checker(answer.get("checker"))
    return CodeTests("stdio", cases, seconds=_seconds(answer), language=answer.get("language"), checker=checker)


def _unit(test: str, setup: str, entry_points: Any, answer: Mapping[str, Any]) -> CodeTests:
    if not test.strip():
        raise UserError("the reference holds no tests")
    names = [entry_points] if isinstance(entry_points, str) else list(entry_points or ())
    if not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise TypeError("entry_point must name what the solution defines")
    plan = plan_unit(test, setup, tuple(names))
    name = names[0] if len(names) == 1 else None
    return CodeTests("unit", name=name, test=test, setup=setup, plan=plan, language="python", seconds=_seconds(answer))


def _function(name: str, cases: tuple[Case, ...], answer: Mapping[str, Any]) -> CodeTests:
    return CodeTests("function", cases, name=name, setup=FUNCTION_SETUP, seconds=_seconds(answer), language="python")
