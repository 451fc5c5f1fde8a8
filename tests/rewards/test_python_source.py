"""Python text is parsed from many threads at once, and to what `ast` makes of it."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from megatron_ring.rewards.python_source import parse_expression, parse_module, read_literal

# The garbage collector runs a finalizer in the middle of a parse, there the threads change: the fault needs both.
THREADS = """
import gc, sys, threading
from megatron_ring.rewards.python_source import parse_module

class Cycle:
    def __init__(self):
        self.itself = self
    def __del__(self):
        for _ in range(200):
            pass

def work():
    for _ in range(150):
        Cycle()
        try:
            parse_module(SOURCE)
        except BaseException as error:
            failed.append(repr(error))

SOURCE = "".join(f"assert f([{i}, ({i} + x * 2)]) == {{'a': [1, 2, 3]}}\\n" for i in range(40))
sys.setswitchinterval(1e-5)
gc.set_threshold(50)
failed = []
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sys.exit(f"{len(failed)} failed, such as {failed[0]}" if failed else 0)
"""


def test_threads_parse_at_once() -> None:
    ended = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


def test_the_tree_is_that_of_ast() -> None:
    source = "def f(x):\n    return [x, {'a': 1}]\n"
    assert ast.dump(parse_module(source)) == ast.dump(ast.parse(source))
    assert ast.dump(parse_expression("f(a=1)")) == ast.dump(ast.parse("f(a=1)", mode="eval").body)
    assert read_literal("  [1, 'a', {'b': None}]") == [1, "a", {"b": None}]


@pytest.mark.parametrize("text", ["f(", "", "__import__('os')", "[1, 2", "(" * 5000, "a\0b"])
def test_errors_are_those_of_ast(text: str) -> None:
    with pytest.raises((ValueError, SyntaxError, RecursionError, MemoryError)) as expected:
        ast.literal_eval(text)
    with pytest.raises(expected.type):
        read_literal(text)
