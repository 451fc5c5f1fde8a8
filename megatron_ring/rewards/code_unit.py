"""Trusted unit tests, read before they run: which names the solution has to supply, and whether anything is asserted.

The tests are parsed, never run, here. What asserts nothing would reward any program, so it is refused.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megatron_ring.errors import UserError
from megatron_ring.rewards.python_source import parse_module
from megatron_ring.rewards.sandbox.guest_assertions import asserts, catches_all, swallows, used_names, wants_exception

MODULES = ("solution", "main", "your_module", "candidate")  # from which tests import what they test


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """What of the tests runs.

    Attributes:
        names: what the solution supplies.
        functions: test functions that the tests themselves do not call.
        classes: classes of tests.
    """

    names: tuple[str, ...]
    functions: tuple[str, ...]
    classes: tuple[str, ...]


def plan_unit(test: str, setup: str, entry_points: tuple[str, ...]) -> UnitPlan:
    """Read the tests of one problem.

    Raises:
        UserError: they do not parse, assert nothing, need what the sandbox lacks, or leave open what the solution supplies.
    """
    tree, prepared = _parsed(test, "tests"), _parsed(setup, "setup")
    _refuse_unsupported(tree)
    top = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    called = set().union(*map(used_names, top)) if top else set()
    functions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and _is_tests(node)]
    own = [node for node in functions if node.name.startswith("test") and node.name not in called]
    for node in own:
        if isinstance(node, ast.AsyncFunctionDef):
            raise UserError(f"line {node.lineno} of the tests: {node.name} is a coroutine, which is not run")
        if len(node.args.posonlyargs) + len(node.args.args) > len(node.args.defaults) or node.args.kwonlyargs:
            raise UserError(f"line {node.lineno} of the tests: {node.name} takes arguments, fixtures are not supported")
    roots = {*called, *classes, *(node.name for node in own)} | ({"check"} if entry_points else set())
    if not any(asserts(node) or wants_exception(node) for node in _reached(tree, prepared, top, roots)):
        unused = next((node.name for node in functions if node.name not in roots), None)
        hint = f": {unused} is never called" if unused else ""
        raise UserError(f"the tests assert nothing{hint}")
    names = _supplied(tree, entry_points, _undefined(test) - _defined(symtable.symtable(setup, "setup", "exec")))
    return UnitPlan(names, tuple(node.name for node in own), tuple(classes))


def _parsed(source: str, what: str) -> ast.Module:
    try:
        return parse_module(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        place = f"line {line} of the {what}" if line else f"the {what}"
        raise UserError(f"{place}: not Python") from None


def _refuse_unsupported(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            if node.module in MODULES and any(alias.name == "*" for alias in node.names):
                raise UserError(f"line {node.lineno} of the tests: import what the solution supplies by name, not *")
        for module in modules:
            if module.split(".")[0] in ("pytest", "hypothesis", "nose"):
                raise UserError(
                    f"line {getattr(node, 'lineno', 0)} of the tests: the sandbox has no {module}: use assert or unittest"
                )
        if isinstance(node, (ast.Try, ast.With)) and any(map(asserts, _all_parts(node.body))):
            for part in _swallowers(node):
                raise UserError(f"line {part.lineno} of the tests: it swallows the tests' own assertions")


def _swallowers(node: ast.Try | ast.With) -> Iterator[ast.expr | ast.stmt | ast.ExceptHandler]:
    """What ends a failed assertion there: `except: pass`, `finally: return`, `with suppress(Exception)`."""
    if isinstance(node, ast.Try):
        yield from filter(swallows, node.handlers)
        yield from (part for part in node.finalbody if isinstance(part, (ast.Return, ast.Break, ast.Continue)))
        return
    for call in (item.context_expr for item in node.items):
        if isinstance(call, ast.Call) and _called(call) == "suppress" and any(map(catches_all, call.args)):
            yield call


def _all_parts(statements: list[ast.stmt]) -> Iterator[ast.AST]:
    return (part for statement in statements for part in ast.walk(statement))


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_tests(node: ast.ClassDef) -> bool:
    bases = {base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases}
    methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
    return any(name.startswith("test") for name in methods) and (
        node.name.startswith("Test")
        or node.name.endswith(("Test", "Tests", "TestCase"))
        or any("TestCase" in base for base in bases)
    )


def _reached(tree: ast.Module, prepared: ast.Module, top: list[ast.stmt], roots: Iterable[str]) -> list[ast.AST]:
    """All nodes of what runs: the top level, and each definition that something reached mentions."""
    defined: dict[str, ast.AST] = {}
    for node in (*prepared.body, *tree.body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined[node.name] = node
    nodes = [part for statement in top for part in ast.walk(statement)]
    waiting, seen = list(roots), set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in defined:
            continue
        seen.add(name)
        nodes += list(ast.walk(defined[name]))
        waiting += list(used_names(defined[name]))
    return nodes


def _undefined(source: str) -> set[str]:
    """Names that the tests read as global ones and never define, nor Python itself."""
    top = symtable.symtable(source, "tests", "exec")
    used, waiting = set(), [top]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        symbols = (symbol for symbol in table.get_symbols() if symbol.is_referenced())
        used |= {symbol.get_name() for symbol in symbols if table is top or symbol.is_global()}
    return used - _defined(top) - set(dir(builtins)) - {"__name__", "__file__", "__doc__"}


def _defined(top: symtable.SymbolTable) -> set[str]:
    """Names that a module binds at its top level, or in a function that declares them global."""
    found, waiting = set(), [top]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        bound = (symbol for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported())
        found |= {symbol.get_name() for symbol in bound if table is top or symbol.is_declared_global()}
    return found


def _supplied(tree: ast.Module, entry_points: tuple[str, ...], free: set[str]) -> tuple[str, ...]:
    """The names that come from the solution: those that are declared or imported from it; else what nobody defines."""
    if entry_points:
        return entry_points
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module in MODULES]
    if imported or any(
        alias.name in MODULES for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    ):
        return ()  # the module `solution` has them
    if not free:
        raise UserError("the tests use nothing that a solution could define")
    if len(free) > 1:
        _refuse_mixed(tree, free)
    return tuple(sorted(free))


def _refuse_mixed(tree: ast.Module, free: set[str]) -> None:
    """One undefined name may not judge another: in `isclose(answer(3), 4)` the solution would supply its own judge."""
    carried: dict[str, set[str]] = {}  # local names, and the undefined ones that their values come from
    while True:
        before = {name: set(names) for name, names in carried.items()}
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):  # a helper judges with what it mentions
                carried.setdefault(node.name, set()).update(*(_mentioned(part, free, carried) for part in node.body))
            for targets, value in _bindings(node):
                found = _mentioned(value, free, carried)
                for target in targets:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name) and found:
                            carried.setdefault(part.id, set()).update(found)
        if before == carried:
            break
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assert, ast.Expr, ast.If, ast.Call, ast.Compare)):
            part = node.test if isinstance(node, (ast.Assert, ast.If)) else node
            found = _mentioned(part, free, carried)
            if len(found) > 1:
                names = " and ".join(sorted(found)[:2])
                raise UserError(
                    f"line {node.lineno} of the tests: {names} are defined by nobody: import the helper, or name what the"
                    " solution defines in 'entry_point'"
                )


def _bindings(node: ast.AST) -> list[tuple[list[ast.expr], ast.expr]]:
    if isinstance(node, ast.Assign):
        return [(node.targets, node.value)]
    if isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and node.value is not None:
        return [([node.target], node.value)]
    if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
        return [([node.target], node.iter)]
    if isinstance(node, ast.With):
        return [([item.optional_vars], item.context_expr) for item in node.items if item.optional_vars is not None]
    return []


def _mentioned(node: ast.AST, free: set[str], carried: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found |= ({part.id} & free) | carried.get(part.id, set())
    return found
