"""Readers of the data sets' tests, on records of their real shapes."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import zlib
from typing import Any

import pytest

from megatron_ring.errors import UserError
from megatron_ring.rewards.code_formats import LARGE, Case, check_tests, read_tests


def test_apps() -> None:
    tests = read_tests({"input_output": json.dumps({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", "7\n"]})})
    assert tests.kind == "stdio" and tests.cases == (Case("1 2\n", "3\n"), Case("3\n4", "7\n"))
    tests = read_tests({"input_output": {"fn_name": "f", "inputs": [[1, [2]], [3, []]], "outputs": [[5], [[1, 2]]]}})
    assert (tests.kind, tests.name, tests.language) == ("function", "f", "python")
    assert tests.cases == (Case([1, [2]], 5), Case([3, []], [1, 2]))
    assert read_tests({"format": "taco", "input_output": '{"inputs": ["1"], "outputs": ["2"]}'}).cases == (Case("1", "2"),)


def test_codecontests() -> None:
    part = {"input": ["1\n"], "output": ["2\n"]}
    answer = {"public_tests": part, "private_tests": {"input": [], "output": []}, "generated_tests": part}
    tests = read_tests(answer | {"time_limit": {"seconds": 2, "nanos": 500_000_000}})
    assert tests.cases == (Case("1\n", "2\n"),) * 2 and tests.seconds == 2.5 and tests.language is None


def test_livecodebench() -> None:
    public = json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}])
    private = [{"input": "3\n", "output": "4\n", "testtype": "stdin"}]
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(private)))).decode()
    for form in (json.dumps(private), packed):
        tests = read_tests({"public_test_cases": public, "private_test_cases": form})
        assert tests.cases == (Case("1\n", "2\n"), Case("3\n", "4\n"))
    functional = json.dumps([{"input": '[1, 2]\n"a"', "output": "true", "testtype": "functional"}])
    tests = read_tests({"public_test_cases": functional, "metadata": '{"func_name": "f"}'})
    assert tests.name == "f" and tests.cases == (Case([[1, 2], "a"], True),)


class _Harm:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_a_pickle_that_runs_code_is_refused() -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(_Harm()))).decode()
    with pytest.raises(UserError, match=r"refers to \w+.system"):
        read_tests({"private_test_cases": packed})


def test_humaneval() -> None:
    tests = read_tests(
        {
            "prompt": "import math\n",
            "test": "def check(candidate): assert candidate(1)",
            "entry_point": "f",
            "task_id": "HumanEval/0",
        }
    )
    assert (tests.kind, tests.name, tests.setup) == ("unit", "f", "import math\n")


@pytest.mark.parametrize(
    "answer",
    [
        None, 3, "text", "[]", {}, {"format": "other"}, {"tests": []}, {"tests": ""}, {"tests": [{"input": "1"}]},
        {"input_output": "{"}, {"input_output": {"inputs": ["1"], "outputs": []}}, {"private_test_cases": "????"},
        {"public_tests": {"input": ["1"], "output": []}}, {"tests": [{"input": "1", "output": "1"}], "time_limit": "soon"},
    ],
)  # fmt: skip
def test_a_useless_reference_is_one_line(answer: object) -> None:
    with pytest.raises(UserError) as caught:
        read_tests(answer)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=re.escape(str(caught.value))):
        check_tests(answer)


def test_large_references_are_checked_by_their_form_alone() -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps("[" + "1" * 3 * 2**20), level=0)).decode()
    assert len(packed) > LARGE
    check_tests({"private_test_cases": packed})
    check_tests(json.dumps({"tests": "x" * (LARGE + 1)}))
    with pytest.raises(UserError, match="is not JSON"):
        check_tests("x" * 2 * LARGE)
    with pytest.raises(UserError, match="is not JSON"):
        read_tests({"private_test_cases": packed})
    with pytest.raises(UserError, match="unknown reference format"):
        check_tests({"private_test_cases": packed, "format": "other"})
