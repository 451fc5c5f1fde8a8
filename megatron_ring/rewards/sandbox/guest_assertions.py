"""What trusted unit tests assert: found in their syntax before a run, counted while they run.

Read on both sides of the sandbox: `code_unit` refuses tests that assert nothing, `guest_tests` counts what was executed.
Only the standard library, no package imports.
"""

from __future__ import annotations

import ast
import builtins
from typing import Any

COUNTER = "__an_assertion_held__"

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
    return _compares_itself(test) or not any(
        isinstance(node, (ast.Name, ast.Call, ast.Attribute)) for node in ast.walk(test)
    )


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
    """Adds a call after each statement that asserts, which is reached where it held."""

    def visit(self, node: ast.AST) -> Any:
        counts = isinstance(node, ast.stmt) and asserts(node)
        if isinstance(node, ast.Try) and wants_exception(node):
            for handler in node.handlers:  # the exception that was wanted came
                handler.body.insert(0, ast.copy_location(_count(), handler.body[0]))
        self.generic_visit(node)
        if not counts:
            return node
        return [node, ast.copy_location(_count(), node)]


def _count() -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name(COUNTER, ast.Load()), [], []))


def counting(source: str) -> ast.Module:
    """The tests with a count of the assertions that held."""
    return ast.fix_missing_locations(_Counting().visit(ast.parse(source)))


def used_names(tree: ast.AST) -> set[str]:
    """Every name that the code reads, but for Python's own."""
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read - set(dir(builtins)) - {"__name__", "__file__", "__doc__"}
