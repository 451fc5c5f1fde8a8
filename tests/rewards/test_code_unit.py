"""Unit tests: what they may use of a solution, what asserts nothing, and what no solution can talk its way past."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from megatron_ring.errors import UserError
from megatron_ring.rewards.code import judge
from megatron_ring.rewards.code_formats import check_tests, read_tests
from megatron_ring.rewards.sandbox import bwrap
from megatron_ring.rewards.sandbox.runner import CodeRunner

sandboxed = pytest.mark.skipif(bwrap.find_problem() is not None, reason="bubblewrap is missing or does not work here")


@pytest.fixture(scope="module")
def runner() -> Iterator[CodeRunner]:
    with CodeRunner() as shared:
        yield shared


# Tests that would reward any program, and what is said of them.
NOTHING = [
    ("", "holds no tests"),
    ("\n \n", "holds no tests"),
    ("# nothing\n\n", "assert nothing"),
    ("def check(candidate):\n    assert candidate(1) == 2", "assert nothing: check is never called"),
    ("def helper():\n    assert f(1) == 2", "assert nothing: helper is never called"),
    ("class T:\n    def helper(self):\n        assert f(1) == 2", "assert nothing"),
    ("assert True", "assert nothing"),
    ("assert 1 == 1", "assert nothing"),
    ("assert f(1) == 2 or True", "assert nothing"),
    ("assert (f(1) == 2, 'two')", "assert nothing"),
    ("assert f(1) == f(1)", "assert nothing"),
    ("assert lambda: f(1) == 2", "assert nothing"),
    ("f(1) == 2", "assert nothing"),
    ("print(f(1) == 2)", "assert nothing"),
    ("x = 5", "assert nothing"),
    ("try:\n    assert f(1) == 2\nexcept AssertionError:\n    pass", "line 3 of the tests: it swallows"),
    ("try:\n    assert f(1) == 2\nexcept:\n    print('no')", "line 3 of the tests: it swallows"),
    (
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n        self.assertEqual(f(1), f(1))",
        "assert nothing",
    ),
    (
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n        self.assertTrue(f(1) == 2 or True)",
        "assert nothing",
    ),
    (
        "import contextlib\nwith contextlib.suppress(AssertionError):\n    assert f(1) == 2",
        "line 2 of the tests: it swallows",
    ),
    ("from contextlib import suppress\nwith suppress(Exception):\n    assert f(1) == 2", "line 2 of the tests: it swallows"),
    ("def t():\n    try:\n        assert f(1) == 2\n    finally:\n        return\nt()", "line 5 of the tests: it swallows"),
    ("def test_f(n):\n    assert f(n) == 2", "line 1 of the tests: test_f takes arguments"),
    ("async def test_f():\n    assert f(1) == 2", "line 1 of the tests: test_f is a coroutine"),
    ("import pytest\ndef test_f():\n    assert f(1) == 2", "line 1 of the tests: the sandbox has no pytest"),
    ("from solution import *\nassert f(1) == 2", "line 1 of the tests: import what the solution supplies by name"),
    ("assert f(1 == 2", "line 1 of the tests: not Python"),
    ("assert 2 == len('ab')", "assert nothing"),
    ("f(1)\nassert abs(len('ab') - 2) < 1e-6", "assert nothing"),
    ("assert isclose(answer(3), 40503)", "answer and isclose are defined by nobody"),
    ("r = answer(3)\nassert isclose(r, 40503)", "line 2 of the tests: answer and isclose"),
    ("def same(a, b):\n    assert isclose(a, b)\nsame(answer(3), 5)", "answer and isclose are defined by nobody"),
    ("for got in map(answer, [1, 2]):\n    assert isclose(got, 5)", "answer and isclose"),
    ("assert answer(3) == reference(3)", "answer and reference are defined by nobody"),
    ("assert check_all(answer, [1, 2])", "answer and check_all are defined by nobody"),
    ("try:\n    f(-1)\nexcept ValueError:\n    pass", "assert nothing"),
    ("[]", "holds no tests"),
    ("{}", "TypeError"),
    ('[{"input": "4", "output": ""}]', "no test expects any output"),
    ("[{'input': '4', 'output': '8'}]", "assert nothing"),
    ('["x = 1"]', "assert nothing"),
]


@pytest.mark.parametrize(("tests", "said"), NOTHING)
def test_what_asserts_nothing_is_refused_before_any_run(tests: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        check_tests({"tests": tests})
    assert "\n" not in str(refused.value)
    reward = judge("def f(x): return x", {"tests": tests}, runner=None)  # type: ignore[arg-type]
    assert (reward.value, reward.reason) == (0, str(refused.value))


def test_a_list_is_no_text_and_a_function_that_returns_nothing_proves_nothing() -> None:
    with pytest.raises(UserError, match="a list is wanted, not str"):
        read_tests({"input_output": {"inputs": "12", "outputs": "34"}})
    with pytest.raises(UserError, match="a list is wanted"):
        read_tests({"public_tests": {"input": "12", "output": "34"}})
    with pytest.raises(UserError, match="every test expects None"):
        read_tests({"fn_name": "f", "tests": [{"args": [1], "expected": None}]})
    with pytest.raises(UserError, match="assert nothing"):
        read_tests({"test": "def check(candidate):\n    pass", "entry_point": "f"})


def test_json_text_is_what_it_stands_for() -> None:
    cases = [{"input": "4", "output": "8"}]
    assert read_tests({"tests": json.dumps(cases)}).cases == read_tests({"tests": cases}).cases
    called = read_tests({"fn_name": "f", "tests": '[{"args": [1], "expected": 1' + "0" * 4999 + "1}]"})
    assert called.kind == "function" and called.cases[0].expected == 10**5000 + 1
    for tests in (["assert f(1) == 2", "assert f(2) == 3"], json.dumps(["assert f(1) == 2", "assert f(2) == 3"])):
        assert read_tests({"tests": tests}).test == "assert f(1) == 2\nassert f(2) == 3"


STACK = """class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
"""
QUEUE = STACK.replace("pop()\n    def __len__", "pop(0)\n    def __len__")
POINT = """class Point:
    def __init__(self, x, y): self.x, self.y = x, y
    def __add__(self, other): return Point(self.x + other.x, self.y + other.y)
    def __eq__(self, other): return (self.x, self.y) == (other.x, other.y)
    def __repr__(self): return f"P({self.x}, {self.y})"
    @staticmethod
    def zero(): return Point(0, 0)
"""
CASE = """import unittest
class Checks(unittest.TestCase):
    def setUp(self): self.given = 4
    def test_value(self): self.assertEqual(double(self.given), 8)
    def test_error(self):
        with self.assertRaises(TypeError): double(None)
if __name__ == "__main__":
    unittest.main()
"""
DOUBLE, SAME = "def double(x): return 2 * x", "def double(x): return x"
RAISES = "def f(x):\n    if x < 0: raise ValueError('no')\n    return x + 1"
SAME_F = "def f(x): return x + 1"
COUNTER = "def make():\n    c = 0\n    def inc():\n        nonlocal c\n        c += 1\n        return c\n    return inc"
THREAD = (
    "import threading\ndef check():\n    assert f(1) == 2\n"
    "t = threading.Thread(target=check)\nt.start()\nt.join()\nassert f(5) == 6"
)
TWO = "def a():\n    assert f(1) == 2\ndef b():\n    assert f(2) == 3\nfor t in (a, b):\n    try:\n        t()\n"
# Program, tests, reward.
RUNS: dict[str, tuple[str, Any, int]] = {
    "class": (STACK, "s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2 and len(s) == 1\nassert s.items == [1]", 1),
    "wrong class": (QUEUE, "s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2", 0),
    "operators": (
        POINT,
        "p = Point(1, 2) + Point(3, 4)\nassert p.x == 4\nassert p == Point(4, 6)\nassert repr(p) == 'P(4, 6)'",
        1,
    ),
    "static method": (POINT, "p = Point.zero()\nassert (p.x, p.y) == (0, 0)\nassert isinstance(p, Point)", 1),
    "attribute set": (POINT, "p = Point(1, 2)\np.x = 7\nassert p.x == 7", 1),
    "subclass of list": (
        "class L(list):\n    def last(self): return self[-1]",
        "a = L([1, 2])\na.append(3)\nassert a.last() == 3",
        1,
    ),
    "generator": (
        "def gen(n):\n    for i in range(n): yield i * i",
        "assert list(gen(4)) == [0, 1, 4, 9]\nassert sum(gen(3)) == 5",
        1,
    ),
    "wrong generator": ("def gen(n):\n    for i in range(n): yield i", "assert list(gen(4)) == [0, 1, 4, 9]", 0),
    "next": ("def gen():\n    yield 1", "g = gen()\nassert next(g) == 1\nassert next(g, None) is None", 1),
    "in place": ("def sort_it(a): a.sort()", "a = [3, 1, 2]\nsort_it(a)\nassert a == [1, 2, 3]", 1),
    "in place, deep": (
        "def put(m): m[0][0] = 9",
        "row = [1, 2]\nm = [row]\nput(m)\nassert m == [[9, 2]] and row[0] == 9",
        1,
    ),
    "in place, dictionary": ("def put(d): d['x'] = 1", "d = {}\nput(d)\nassert d == {'x': 1}", 1),
    "not in place": ("def sort_it(a): return sorted(a)", "a = [3, 1, 2]\nsort_it(a)\nassert a == [1, 2, 3]", 0),
    "callback": ("def apply(f, xs): return [f(x) for x in xs]", "assert apply(lambda x: x + 1, [1, 2]) == [2, 3]", 1),
    "callback that raises": (
        "def safe(f):\n    try: return f()\n    except KeyError: return 0",
        "assert safe(lambda: {}['x']) == 0",
        1,
    ),
    "closure": (COUNTER, "c = make()\nassert c() == 1\nassert c() == 2", 1),
    "import from": (DOUBLE, "from solution import double\nassert double(4) == 8", 1),
    "import": (DOUBLE, "import solution\nassert solution.double(4) == 8", 1),
    "own exception": (
        "class E(ValueError): pass\ndef f(): raise E('no')",
        "from solution import f, E\ntry:\n    f()\n    assert False\nexcept E as e:\n    assert str(e) == 'no'",
        1,
    ),
    "test function": (DOUBLE, "def test_double():\n    assert double(4) == 8", 1),
    "test function, wrong": (SAME, "def test_double():\n    assert double(4) == 8", 0),
    "unittest": (DOUBLE, CASE, 1),
    "unittest, wrong": (SAME, CASE, 0),
    "plain class of tests": (DOUBLE, "class TestDouble:\n    def test_it(self):\n        assert double(4) == 8", 1),
    "plain class of tests, wrong": (SAME, "class TestDouble:\n    def test_it(self):\n        assert double(4) == 8", 0),
    "if and raise": (SAME, "if double(4) != 8:\n    raise ValueError('no')", 0),
    "if and raise, right": (DOUBLE, "if double(4) != 8:\n    raise ValueError('no')", 1),
    "list of assertions": (DOUBLE, ["assert double(1) == 2", "assert double(2) == 4"], 1),
    "large number": ("def f(): return 10**5000", "assert f() == 10**5000", 1),
    "assertions in a branch that is not taken": (DOUBLE, "if double(4) == 7:\n    assert double(2) == 4", 0),
    "assertion without the solution": (DOUBLE, "import math\nassert math.sqrt(4) == 2\nname = 'double' if 0 else double", 0),
    "StopIteration in zip": (
        "def f(x): raise StopIteration",
        "for a, b in zip(map(f, [1, 2]), [2, 3]):\n    assert a == b\nassert f(1)",
        0,
    ),
    "StopIteration in all": ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))", 0),
    "StopIteration from an iterator": (
        "class I:\n    def __iter__(self): return self\n    def __next__(self): raise StopIteration",
        "assert list(I()) == []",
        1,
    ),
    "exit, caught": ("import os\ndef f(x): os._exit(0)", "try:\n    r = f(3)\nexcept:\n    r = 8\nassert r == 8", 0),
    "sys.exit, caught": (
        "import sys\ndef f(x): sys.exit(0)",
        "try:\n    r = f(3)\nexcept BaseException:\n    r = 8\nassert r == 8",
        0,
    ),
    "wants an exception": (RAISES, "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass", 1),
    "wants an exception in vain": (SAME_F, "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass", 0),
    "wants an exception, else": (RAISES, "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    raise KeyError", 1),
    "the name of an argument": (SAME_F, "def check(f):\n    assert f(1) == 2\ncheck(f)", 1),
    "results in a list": (SAME_F, "good = []\nfor x in (1, 2):\n    good.append(f(x) == x + 1)\nassert all(good)", 1),
    "a caller that swallows": (SAME_F, TWO + "    except Exception as error:\n        print(error)", 1),
    "a caller that swallows, one wrong": (
        "def f(x): return 2",
        TWO + "    except Exception as error:\n        print(error)",
        0,
    ),
    "a caller that swallows, one raises": (
        "def f(x): return {1: 2}[x]",
        TWO + "    except (ValueError, Exception):\n        pass",
        0,
    ),
    "a caller that swallows by another name": (
        "def f(x): return 2",
        "E = AssertionError\n" + TWO + "    except E:\n        print('no')",
        0,
    ),
    "a failure said and raised again, then swallowed": (
        "def f(x): return 2",
        "def told(t):\n    try:\n        t()\n    except AssertionError:\n        print('no')\n        raise\n"
        + TWO.replace("t()", "told(t)")
        + "    except Exception:\n        pass",
        0,
    ),
    "suppressed further up": (
        "def f(x): return 2",
        "from contextlib import suppress\n" + TWO.replace("try", "with suppress(Exception)"),
        0,
    ),
    "a failure where any exception is wanted": (
        "def f(x): return 2",
        CASE.replace("double(None)", "assert f(2) == 3")
        .replace("TypeError", "Exception")
        .replace("double(self.given), 8", "f(1), 2"),
        0,
    ),
    "a value or an error": (RAISES, "try:\n    assert f(-1) == 0\nexcept ValueError:\n    pass\nassert f(1) == 2", 1),
    "one of two values": (SAME_F, "try:\n    assert f(1) == 3\nexcept AssertionError:\n    assert f(1) == 2", 1),
    "in a thread": (SAME_F, THREAD, 1),
    "in a thread, wrong": ("def f(x): return x", THREAD.replace("f(5) == 6", "f(5) == 5"), 0),
    "items without an iterator": (
        "class f:\n    def __getitem__(self, i):\n        if i > 2: raise IndexError\n        return i * i",
        "assert list(f()) == [0, 1, 4]",
        1,
    ),
    "iterates": (
        "class f:\n    def __iter__(self): return iter([1, 2])",
        "assert list(f()) == [1, 2]\nassert max(f()) == 2",
        1,
    ),
    "a class's constant": ("class f:\n    n = 3", "assert f.n == 3", 1),
    "a class's constant, wrong": ("class f:\n    n = 3", "assert f.n == 4", 0),
    "skip": ("import unittest\ndef double(x): raise unittest.SkipTest('x')", CASE, 0),
}


@sandboxed
@pytest.mark.parametrize("name", RUNS)
def test_runs(runner: CodeRunner, name: str) -> None:
    source, tests, reward = RUNS[name]
    given = judge(f"```python\n{source}\n```", {"tests": tests, "time_limit": 30}, runner)
    assert given.value == reward, given.reason
    assert "\n" not in given.reason


EVIL = """class E:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __sub__(self, other): return self
    def __rsub__(self, other): return 0
    def __abs__(self): return 0
    def __lt__(self, other): return True
    def __le__(self, other): return True
    def __gt__(self, other): return True
    def __ge__(self, other): return True
    def __contains__(self, other): return True
    def __hash__(self): return hash(40503)
    def __round__(self, n=0): return 40503
    def startswith(self, x): return True
    def issubset(self, x): return True
    def get(self, *x): return True
def answer(x): return E()
"""


@sandboxed
@pytest.mark.parametrize(
    "test",
    [
        "answer(3) == 40503", "not answer(3) != 40503", "abs(answer(3) - 40503) < 1e-6", "40503 - answer(3) == 0",
        "40503 in answer(3)", "answer(3) in [40503]", "answer(3) in {40503}", "{answer(3): 1} == {40503: 1}",
        "answer(3) <= 40503 <= answer(3)", "answer(3).startswith('405')", "answer(3).issubset({1})", "answer(3).get(40503)",
        "[answer(3)] == [40503]", "(answer(3),) == (40503,)", "max(answer(3), 40503) == 40503",
    ],
)  # fmt: skip
def test_a_returned_object_never_passes_for_plain_data(runner: CodeRunner, test: str) -> None:
    reward = judge(f"```python\n{EVIL}\n```", {"tests": f"assert {test}", "time_limit": 30}, runner)
    assert reward.value == 0


@sandboxed
@pytest.mark.parametrize(
    "source",
    [
        "print(2 * int(open('/dev/stdin').read()))",
        "print(2 * int(open(0).read()))",
        "from pathlib import Path\nprint(2 * int(Path('/dev/stdin').read_text()))",
        "import os\nprint(2 * int(os.read(0, os.fstat(0).st_size)))",
        "import os\nprint(2 * int(os.read(os.open('/dev/stdin', 0), 99)))",
        "import sys\nfirst = sys.stdin.read()\nsys.stdin.seek(0)\nprint(int(first) + int(sys.stdin.read()))",
        "import mmap\nprint(2 * int(mmap.mmap(0, 0, access=mmap.ACCESS_READ)[:]))",
    ],
)
def test_ways_to_read_stdin(runner: CodeRunner, source: str) -> None:
    tests = {"tests": [{"input": "4\n", "output": "8\n"}, {"input": "11\n", "output": "22\n"}], "time_limit": 30}
    assert judge(f"```python\n{source}\n```", tests, runner).value == 1


@sandboxed
def test_numbers_of_any_length_are_printed(runner: CodeRunner) -> None:
    tests = {"tests": [{"input": "5000", "output": "1" + "0" * 5000}], "time_limit": 30}
    assert judge("```python\nprint(10 ** int(input()))\n```", tests, runner).value == 1
