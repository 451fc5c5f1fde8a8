"""The code verifier: extraction, comparison, and real runs in every mode."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.errors import UserError
from megatron_ring.rewards.code import extract_solution, judge, score
from megatron_ring.rewards.code_compare import outputs_agree, values_agree
from megatron_ring.rewards.interface import ScoreRequest
from megatron_ring.rewards.sandbox import bwrap
from megatron_ring.rewards.sandbox.images import image_for, java_main
from megatron_ring.rewards.sandbox.runner import CodeRunner
from megatron_ring.rewards.sandbox.seccomp import build_filter

ROOT = Path(__file__).resolve().parents[2]
HUMANEVAL = ROOT / "../shared/data/humaneval.jsonl.gz"
sandboxed = pytest.mark.skipif(bwrap.find_problem() is not None, reason="bubblewrap is missing or does not work here")


@pytest.fixture(scope="module")
def runner() -> Iterator[CodeRunner]:
    with CodeRunner() as shared:
        yield shared


@pytest.mark.parametrize(
    ("response", "source", "language"),
    [
        ("print(1)", "print(1)", None),
        ("a\n```python\nx\n```\nb", "x\n", "python"),
        ("```\nx\n```\n```C++ title\ny\n```", "y\n", "c++"),
        ("```py\nx\n```\nthen\n```py\ny", "x\n", "py"),
        ("```py\nx\n```\n```\n```", "x\n", "py"),
        ("````md\n```py\nx\n```\n````", "x\n", "py"),
        ("```py\nx\n```\nIt prints\n```\n8\n```", "x\n", "py"),
        ("```py\nx\n```\n```bash\npython x.py\n```\n```output\n8\n```", "x\n", "py"),
        ("```\nx\n```\n```text\n8\n```", "x\n", None),
        ("```{.python .numberLines}\nx\n```", "x\n", "python"),
        ("1. so\n   ```py\n   if x:\n       y\n\n   ```", "if x:\n    y\n\n", "py"),
        ("  ```py\nx\n  y\n  ```", "x\ny\n", "py"),
        ("```text\n8\n```", "", None),
        ("```py\nx", "", None),
    ],
)
def test_the_last_complete_block_is_the_solution(response: str, source: str, language: str | None) -> None:
    solution = extract_solution(response)
    assert (solution.source, solution.language) == (source, language)


def test_a_response_of_fences_takes_linear_time() -> None:
    extract_solution("```py\n" * 200_000)
    extract_solution("`" * 1_000_000)
    extract_solution(("```" + " " * 1000) * 1000)


@pytest.mark.parametrize(
    ("expected", "given", "agrees"),
    [
        ("1 2\n3\n", "1 2 \r\n3", True),
        ("1\n", "1\n\n\n", True),
        ("0.3333333", "0.33333333333", True),
        ("0.5", "5e-1", True),
        ("3", "3.0", True),
        ("1000000", "1000001", False),
        ("3", "3.0000001", False),
        ("0.5", "0.51", False),
        ("0.0000000001", "0", False),
        ("1e-10", "2e-10", False),
        ("0.000", "-0.0000000000001", True),
        ("0.001", "0.00100001", False),
        ("0.001", "0.0010000000001", True),
        ("123456789.5", "123456700.5", False),
        ("123456789.5", "123456789.501", False),
        ("123456789.5", "123456789.50000001", True),
        ("1e20", "100000000000000000000.0", True),
        ("1e400", "1e401", False),
        ("1e400", "10e399", True),
        ("1\n2", "1 2", False),
        ("  x", "x", False),
        ("yes", "YES", False),
        ("1.0", "nan", False),
        ("", "\n", True),
        ("a", "", False),
    ],
)
def test_outputs(expected: str, given: str, agrees: bool) -> None:
    assert outputs_agree(expected, given) is agrees


@pytest.mark.parametrize(
    ("expected", "given", "agrees"),
    [
        ([1, 2], (1, 2), True),
        ([1, 2], [1, 2, 3], False),
        (0.1, 0.1 + 1e-9, True),
        (1, 1.0, True),
        (1, True, False),
        ({"1": [2.0]}, {1: (2,)}, True),
        (None, 0, False),
        ("1", 1, False),
        (1.5, 10**400, False),
        (1e-10, 0.0, False),
        (123456789.5, 123456700.5, False),
        (0.1 + 0.2, 0.3, True),
    ],
)
def test_values(expected: object, given: object, agrees: bool) -> None:
    assert values_agree(expected, given) is agrees


@sandboxed
def test_programs_are_judged_and_a_failure_is_named(runner: CodeRunner) -> None:
    tests = {"tests": [{"input": f"{i} 7\n", "output": f"{i * 7}\n"} for i in range(9)], "time_limit": 20}
    assert judge("```python\na, b = map(int, input().split())\nprint(a * b)\n```", tests, runner).value == 1
    for wrong, failing in (("a == 5", range(5, 6)), ("a >= 5", range(5, 9))):  # the first to fail is named, of several any
        program = f"a, b = map(int, input().split())\nprint(0 if {wrong} else a * b)"
        reward = judge(f"```python\n{program}\n```", tests, runner)
        assert reward.value == 0
        assert reward.reason in {f"test {i + 1} of 9: printed '0', expected '{7 * i}'" for i in failing}
    assert "ZeroDivisionError" in judge("```python\n1 / 0\n```", tests, runner).reason
    assert judge("nothing ```", {"tests": []}, runner).reason == "the reference holds no tests"


@sandboxed
def test_functions_and_methods_are_called(runner: CodeRunner) -> None:
    tests: dict[str, Any] = {
        "fn_name": "add",
        "tests": [{"args": [1, 2], "expected": 3}, {"args": [[1], [2]], "expected": [1, 2]}],
    }
    for source in ("def add(a, b): return a + b", "class Solution:\n    def add(self, a: List[int], b): return a + b"):
        assert judge(f"```python\n{source}\n```", tests | {"time_limit": 20}, runner).value == 1
    assert judge("def add(a, b): print('3'); return 3", tests, runner).reason == "test 2 of 2: returned 3, expected [1, 2]"
    assert "NameError" in judge("def sub(a, b): return 1", tests, runner).reason
    assert "not plain data" in judge("def add(a, b): return object()", tests, runner).reason


SOURCES = {
    "cpp": "#include <iostream>\nint main(){long a,b;std::cin>>a>>b;std::cout<<a*b<<std::endl;}",
    "java": "import java.util.*;\npublic class Product { public static void main(String[] x) {\n"
    "Scanner s = new Scanner(System.in); System.out.println(s.nextLong() * s.nextLong()); } }",
    "javascript": "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number);\nconsole.log(a * b);",
}


@sandboxed
@pytest.mark.parametrize("language", SOURCES)
def test_other_languages(runner: CodeRunner, language: str) -> None:
    try:
        image_for(language)
    except UserError as error:
        pytest.skip(str(error))
    cases = [{"input": f"{i} 7\n", "output": f"{i * 7}"} for i in range(3)]
    tests = {"tests": cases, "time_limit": 40}
    reward = judge(f"```{language}\n{SOURCES[language]}\n```", tests, runner)
    assert reward.value == 1, reward
    cases[2]["output"] = "0"
    assert judge(f"```{language}\n{SOURCES[language]}\n```", tests, runner).reason.startswith("test 3 of 3: printed '14'")
    if language != "javascript":
        assert judge(f"```{language}\nclass X {{ {{ int\n```", tests, runner).reason.startswith("does not compile")


def test_java_class_names() -> None:
    assert java_main("class A {} public final class B {}") == "B"
    assert java_main("class A {} class C { public static void main(String[] a) {} } class D {}") == "C"
    assert java_main("") == "Main"


@pytest.fixture(scope="module")
def humaneval() -> list[dict[str, Any]]:
    if not HUMANEVAL.is_file():
        pytest.skip(f"{HUMANEVAL} is absent")
    with gzip.open(HUMANEVAL) as lines:
        return [json.loads(line) for line in lines]


@sandboxed
@pytest.mark.parametrize("canonical", [True, False], ids=["canonical", "pass"])
def test_humaneval(runner: CodeRunner, humaneval: list[dict[str, Any]], canonical: bool) -> None:
    def value(row: dict[str, Any]) -> float:
        body = row["canonical_solution"] if canonical else "    pass\n"
        return judge(f"```python\n{row['prompt']}{body}```", row | {"time_limit": 30}, runner).value

    with ThreadPoolExecutor(2) as pool:
        rewards = list(pool.map(value, humaneval))
    assert len(rewards) == 164 and set(rewards) == {float(canonical)}


@sandboxed
def test_score_takes_requests() -> None:
    answer = {"tests": "assert double(4) == 8\nassert [double(x) for x in (1, 'a')] == [2, 'aa']", "time_limit": 20}
    assert score(ScoreRequest("code", None, "```python\ndef double(x): return 2 * x\n```", answer)).value == 1
    reward = score(ScoreRequest("code", None, "```python\ndef double(x): return x + 4\n```", answer))
    assert reward.value == 0 and "assert [double(x)" in reward.reason


PROGRAM = """
from megatron_ring.errors import UserError
from megatron_ring.rewards.code import judge
from megatron_ring.rewards.sandbox.runner import CodeRunner
try:
    with CodeRunner() as runner:
        one = judge("print(6 * 7)", {"tests": [{"input": "", "output": "42"}], "time_limit": 30}, runner)
        two = judge("def f(x): return x", {"tests": "assert f(1) == 1", "time_limit": 30}, runner)
        print(one.value + two.value)
except UserError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("unsafe", [False, True])
def test_without_bubblewrap_it_refuses_unless_told_otherwise(unsafe: bool, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "TMPDIR": str(tmp_path), bwrap.UNSAFE_VARIABLE: str(int(unsafe))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120)
    if unsafe:
        assert done.stdout.strip() == "2.0" and "WITHOUT a sandbox" in done.stderr, done
    else:
        assert done.stdout.startswith("refused:") and "apt-get install bubblewrap" in done.stdout, done


def test_the_filter_is_made_for_known_processors_only() -> None:
    assert len(build_filter("x86_64")) % 8 == 0 and len(build_filter("aarch64")) < len(build_filter("x86_64"))
    with pytest.raises(UserError, match="riscv64"):
        build_filter("riscv64")
