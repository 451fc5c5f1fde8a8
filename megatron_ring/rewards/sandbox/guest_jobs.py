"""What runs inside the sandbox, in a process of its own: a script, a served function, or trusted unit tests.

    script  the solution as a program: stdin and stdout are the program's.
    serve   the solution's functions, called by request: a line on stdin → a line on stdout. Both are moved out of the
            solution's way before it is loaded. It could write replies of its own; they would be judged like any other.
    unit    the tests, WITHOUT the solution: its functions are stand-ins that ask the `serve` process of the same run
            (calls on stdout, replies on stdin) and get plain data back. The verdict goes to stderr, which the solution
            does not have. So a solution cannot touch the tests, their process or their verdict.

Runs under the plain system Python: only the standard library, no package imports.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import json
import os
import sys
import threading
import traceback
import types
from typing import IO, Any

import guest_values

MAX_LINE = 8 << 20


def run_job(spec: dict[str, Any]) -> None:
    """Run the job in this process and never return."""
    status = 1
    try:
        status = {"script": _script, "serve": _serve, "unit": _unit}[spec["job"]](spec)
    except SystemExit as stop:
        status = _exit_status(stop)
    except BaseException:
        _print_traceback()
    status = _leave(status)
    os._exit(status & 0xFF)


def _exit_status(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1


def _print_traceback() -> None:
    try:
        traceback.print_exc(limit=-3)
    except BaseException:
        os.write(2, b"an exception that cannot be printed\n")


def _leave(status: int) -> int:
    """What the interpreter does at its end: wait for threads, run exit handlers, flush."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        status = status or 1
    with contextlib.suppress(BaseException):
        sys.stderr.flush()
    return status


def _load(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """Execute the setup and the solution as the module `name`; returns its namespace."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    sys.argv = ["solution.py"]
    for part in ("setup", "source"):
        if spec.get(part):
            exec(compile(spec[part], f"{part}.py" if part == "setup" else "solution.py", "exec"), module.__dict__)
    return module.__dict__


def _script(spec: dict[str, Any]) -> int:
    _load(spec, "__main__")
    return 0


def _take_channels() -> tuple[IO[bytes], IO[bytes]]:
    """Move stdin and stdout out of the solution's way; what it prints goes nowhere."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return requests, replies


def _serve(spec: dict[str, Any]) -> int:
    requests, replies = _take_channels()
    namespace: dict[str, Any] = {}
    problem: bytes | None = None
    try:
        namespace = _load(spec, "solution")
    except SystemExit:
        raise
    except BaseException as error:
        problem = _failure(error)
    for line in requests:
        replies.write(problem or _call(namespace, guest_values.loads(line)))
        replies.flush()
    return 0


def _call(namespace: dict[str, Any], call: dict[str, Any]) -> bytes:
    try:
        function = _resolve(namespace, call["name"])
        return guest_values.dumps({"value": function(*call["args"], **call["kwargs"])})
    except Exception as error:
        return _failure(error)


def _failure(error: BaseException) -> bytes:
    return guest_values.dumps({"error": type(error).__name__, "message": _message(error)})


def _resolve(namespace: dict[str, Any], name: str) -> Any:
    """A function of that name, or the method of a class `Solution`."""
    solution = namespace.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return getattr(solution(), name)
    if name not in namespace:
        raise NameError(f"name {name!r} is not defined")
    return namespace[name]


def _message(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except BaseException:
        return ""


class CandidateGone(BaseException):
    """The solution's process ended or broke the protocol; not an Exception, so no test can swallow it."""


class _Stand:
    """Stands in for one function of the solution."""

    def __init__(self, name: str, replies: IO[bytes], calls: IO[bytes]) -> None:
        self._name, self._replies, self._calls = name, replies, calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = guest_values.dumps({"name": self._name, "args": list(args), "kwargs": kwargs})
        try:
            self._calls.write(request)
            self._calls.flush()
            line = self._replies.readline(MAX_LINE)
            reply = guest_values.loads(line)
            failed = "error" in reply
            value = None if failed else reply["value"]
        except BaseException:
            raise CandidateGone("the solution's process ended or sent no valid reply") from None
        if failed:
            raise _exception(str(reply["error"]), str(reply.get("message")))
        return value


def _exception(name: str, message: str) -> Exception:
    """The built-in exception of that name, for tests that expect one; RuntimeError for any other."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
        return kind(f"{name}: {message}")
    return RuntimeError(f"{name}: {message}")


def _unit(spec: dict[str, Any]) -> int:
    replies, calls = _take_channels()
    verdict: dict[str, Any] = {"passed": False, "problem": "the tests did not finish"}
    names = [spec["entry_point"]] if spec.get("entry_point") else _free_names(spec["test"], spec.get("setup") or "")
    try:
        namespace = _load({"setup": spec.get("setup")}, "tests")
        namespace.update((name, _Stand(name, replies, calls)) for name in names)
        exec(compile(spec["test"], "tests.py", "exec"), namespace)
        if spec.get("entry_point") and "check" in namespace:
            namespace["check"](namespace[spec["entry_point"]])
        verdict = {"passed": True, "problem": None}
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "tests.py"]
        lines = spec["test"].splitlines()
        where = lines[frames[-1].lineno - 1].strip() if frames and frames[-1].lineno else ""
        problem = f"{type(error).__name__}: {_message(error)}".strip(": ")
        verdict["problem"] = problem + (f" at {where[:120]}" if where else "")
    os.write(2, json.dumps(verdict).encode() + b"\n")
    return 0


def _free_names(test: str, setup: str) -> list[str]:
    """Names that the tests use and nothing but the solution can define."""
    used: set[str] = set()
    bound = set(dir(builtins))
    for source in (setup, test):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.alias):
                bound.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.ExceptHandler) and node.name:
                bound.add(node.name)
    return sorted(used - bound)
