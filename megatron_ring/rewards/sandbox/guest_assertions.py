"""What trusted unit tests assert: found in their syntax before a run, counted while they run.

Read on both sides of the sandbox: `code_unit` refuses tests that assert nothing, `guest_tests` counts what was executed.
Only the standard library, no package imports.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Sequence
from typing import Any

COUNTER = "__an_assertion__"

_LOOK_UP = {"eval", "exec", "globals", "locals", "vars", "getattr", "__import__"}
_CATCH_ALL = ("AssertionError", "Exception", "BaseException")
_REFLEXIVE = (ast.Eq, ast.Is, ast.LtE, ast.GtE)
_OF_ONE = ("assertTrue", "assert_")
_OF_TWO = (
    "assertEqual", "assertEquals", "assertIs", "assertAlmostEqual", "assertListEqual", "assertTupleEqual", "assertDictEqual",
    "assertSetEqual", "assertSequenceEqual", "assertCountEqual", "assertGreaterEqual", "assertLessEqual",
)  # fmt: skip


def always_true(test: ast.expr) -> bool:
    """Whether an assertion says nothing: `assert True`, `assert (f(1) == 2, "message")`, `assert 1 == 1`, `x == x`."""
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if isinstance(test, (ast.Lambda, ast.JoinedStr)):
        return True
    if isinstance(test, (ast.Tuple, ast.List, ast.Set)):
        return bool(test.elts)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return any(always_true(value) for value in test.values)
    if isinstance(test, ast.BoolOp):
        return all(always_true(value) for value in test.values)
    return _compares_itself(test) or not _reads(test)


def _reads(test: ast.expr) -> bool:
    """Whether it depends on anything but literals and Python's own functions of them: not `len("ab") == 2`."""
    names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    return bool(names & _LOOK_UP or names - set(dir(builtins)))


def _compares_itself(test: ast.expr) -> bool:
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], _REFLEXIVE):
        return False
    return ast.dump(test.left) == ast.dump(test.comparators[0])


def asserts(node: ast.AST) -> bool:
    """Whether a statement asserts something by itself: an assertion, `if …: raise`, a call of `assert…`, `with …Raises`."""
    if isinstance(node, ast.Assert):
        return not always_true(node.test)
    if isinstance(node, ast.If):
        return any(_ends(statement) for statement in node.body + node.orelse) and not always_true(node.test)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call) and _is_assertion_call(node.value)
    if isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items]
        return any(isinstance(call, ast.Call) and _is_assertion_call(call) for call in calls)
    return False


def _ends(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise):
        return True
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and _called(call) in ("exit", "quit", "_exit", "abort", "fail")


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def _is_assertion_call(call: ast.Call) -> bool:
    name = _called(call)
    if not (name.startswith("assert") or name in ("raises", "fail")):
        return False
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    if name in _OF_ONE and arguments and always_true(arguments[0]):
        return False
    if name in _OF_TWO and len(arguments) > 1 and ast.dump(arguments[0]) == ast.dump(arguments[1]):
        return False
    return any(isinstance(node, (ast.Name, ast.Call)) for argument in arguments for node in ast.walk(argument))


def _cannot_be_reached(statements: list[ast.stmt]) -> bool:
    """Whether one of them says that the program must not come here: `assert False`, `raise`, `self.fail()`."""
    return any(_ends(part) or (isinstance(part, ast.Assert) and _is_false(part.test)) for part in statements)


def wants_exception(node: ast.AST) -> bool:
    """Whether a `try` fails unless its body raises: it ends with `assert False`, or that or a `raise` stands in `else`."""
    if not isinstance(node, ast.Try):
        return False
    body = [part for part in node.body if not isinstance(part, ast.Raise)]
    return _cannot_be_reached(body) or _cannot_be_reached(node.orelse)


def _is_false(test: ast.expr) -> bool:
    return isinstance(test, ast.Constant) and not test.value


class _Counting(ast.NodeTransformer):
    """Has each statement that asserts report that it held or how it failed, and each handler what it dealt with.

    A failure that nobody dealt with and that did not end the tests was swallowed on its way, wherever that happened.
    """

    def visit(self, node: ast.AST) -> Any:
        counts = isinstance(node, ast.stmt) and asserts(node)
        fails = (counts and not isinstance(node, ast.If)) or (isinstance(node, ast.Raise) and _raises_assertion(node))
        if isinstance(node, ast.Try):
            came = wants_exception(node)  # the exception that was wanted
            for handler in node.handlers:
                handler.body[:0] = [*_dealt(handler), *([_report("HELD")] if came else [])]
        self.generic_visit(node)
        if not isinstance(node, ast.stmt):
            return node
        if isinstance(node, ast.With) and any(map(_expects_some, node.items)):
            node.body = [_reporting(node.body, "CAUGHT")]
        held = [ast.copy_location(_report("HELD"), node)] if counts else []
        return [_reporting([node], "FAILED") if fails else node, *held] if fails or held else node


def _dealt(handler: ast.ExceptHandler) -> list[ast.stmt]:
    if not any(map(catches_all, _kinds(handler))):
        return [_report("CAUGHT")]
    return [] if swallows(handler) else [_report("DEALT")]


def _raises_assertion(node: ast.Raise) -> bool:
    """Whether it raises an AssertionError, or again what a handler has caught."""
    return node.exc is None or any(isinstance(part, ast.Name) and part.id == "AssertionError" for part in ast.walk(node.exc))


def _expects_some(item: ast.withitem) -> bool:
    """Whether it is `with assertRaises(…)` or `suppress(…)` of exceptions other than those of failed assertions."""
    call = item.context_expr
    if not isinstance(call, ast.Call) or any(map(catches_all, call.args)):
        return False
    return _is_assertion_call(call) or _called(call) == "suppress"


def _reporting(body: list[ast.stmt], what: str) -> ast.Try:
    """The statements, with a report of an exception that leaves them."""
    handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [_report(what), ast.Raise()])
    return ast.copy_location(ast.Try(body, [ast.copy_location(handler, body[-1])], [], []), body[0])


def _report(what: str) -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name(COUNTER, ast.Load()), [ast.Constant(what)], []))


class Counts:
    """What the tests report while they run. Attributes: `held`, assertions that held; `failures`, of those that failed, the
    exceptions that no handler has dealt with."""

    def __init__(self) -> None:
        self.held = 0
        self.failures: list[BaseException] = []

    def report(self, what: str) -> None:
        """`HELD`, or of the exception that is being handled: that it `FAILED` an assertion, that it was `DEALT` with, that
        it was `CAUGHT`, which settles it unless it is a failed assertion."""
        error = sys.exc_info()[1]
        if what == "HELD":
            self.held += 1
        elif what == "FAILED" and error is not None:
            self.failures.append(error)
        elif not (what == "CAUGHT" and isinstance(error, AssertionError)):
            settled: list[BaseException] = []
            while error is not None and error not in settled:
                settled.append(error)
                error = error.__cause__ or error.__context__
            self.failures = [failure for failure in self.failures if not any(failure is one for one in settled)]


def catches_all(kind: ast.expr | None) -> bool:
    """Whether a handler of this kind catches a failed assertion."""
    name = kind.attr if isinstance(kind, ast.Attribute) else kind.id if isinstance(kind, ast.Name) else ""
    return kind is None or name in _CATCH_ALL


def _kinds(handler: ast.ExceptHandler) -> Sequence[ast.expr | None]:
    return handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]


def swallows(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches failed assertions and says nothing of them."""
    parts = [part for statement in handler.body for part in ast.walk(statement)]
    acts = any(isinstance(part, ast.Raise) or asserts(part) or _returns(part) for part in parts)
    ends = any(isinstance(part, ast.Call) and _called(part) in ("exit", "quit", "fail", "abort") for part in parts)
    return any(map(catches_all, _kinds(handler))) and not acts and not ends


def _returns(part: ast.AST) -> bool:
    return isinstance(part, ast.Return) and part.value is not None


def counting(source: str) -> ast.Module:
    """The tests with a count of the assertions that held."""
    return ast.fix_missing_locations(_Counting().visit(ast.parse(source)))


def used_names(tree: ast.AST) -> set[str]:
    """Every name that the code reads, but for Python's own."""
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read - set(dir(builtins)) - {"__name__", "__file__", "__doc__"}
