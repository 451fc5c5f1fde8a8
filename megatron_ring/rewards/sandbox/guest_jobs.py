"""What runs inside the sandbox, in a process of its own: a script, a served function, or trusted unit tests.

    script  the solution as a program: stdin and stdout are the program's.
    serve   the solution's functions, called by request: a line on stdin → a line on stdout. Both are moved out of the
            solution's way before it is loaded. It could write replies of its own; they would be judged like any other.
    unit    the tests, WITHOUT the solution: its functions and objects are stand-ins that ask the `serve` process of the
            same run (calls on stdout, replies on stdin, see `guest_remote`). The verdict goes to stderr, which the
            solution does not have. So a solution cannot touch the tests, their process or their verdict.

Runs under the plain system Python: only the standard library, no package imports.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import io
import json
import os
import sys
import threading
import traceback
import types
from typing import IO, Any

import guest_assertions
import guest_remote
import guest_server

_STANDARD_PATHS = {
    **{f"/dev/{name}": number for number, name in enumerate(("stdin", "stdout", "stderr"))},
    **{f"{folder}/{number}": number for folder in ("/dev/fd", "/proc/self/fd") for number in range(3)},
}
_MAX_STDIN_FILE = 12 << 20


def run_job(spec: dict[str, Any]) -> None:
    """Run the job in this process and never return."""
    status = 1
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)  # numbers of any size may be printed: the time limit bounds it
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
    if spec.get("stdin_bytes", _MAX_STDIN_FILE + 1) <= _MAX_STDIN_FILE:  # a larger one stays a pipe
        _stdin_as_file()
    _open_standard_by_path()
    _load(spec, "__main__")
    return 0


def _stdin_as_file() -> None:
    """Put stdin into a file, as `< input.txt` does: programs ask for its size, or read it twice."""
    path = f"stdin-{os.getpid()}"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    while part := os.read(0, 1 << 16):
        os.write(file, part)
    os.lseek(file, 0, os.SEEK_SET)
    os.dup2(file, 0)
    os.close(file)


def _open_standard_by_path() -> None:
    """Let `open("/dev/stdin")` and its kin work where there is no /proc for them to point into."""
    real_open, real_os_open = io.open, os.open

    def standard(path: Any) -> int | None:
        known = isinstance(path, (str, bytes, os.PathLike))
        return _STANDARD_PATHS.get(os.fsdecode(path)) if known else None

    def open_file(file: Any, *args: Any, **kwargs: Any) -> Any:
        number = standard(file)
        return real_open(file if number is None else os.dup(number), *args, **kwargs)

    def open_descriptor(path: Any, *args: Any, **kwargs: Any) -> int:
        number = standard(path)
        return real_os_open(path, *args, **kwargs) if number is None else os.dup(number)

    builtins.open = io.open = open_file  # type: ignore[assignment]
    os.open = open_descriptor  # type: ignore[assignment]


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
    problem: BaseException | None = None
    try:
        namespace = _load(spec, "solution")
    except SystemExit:
        raise
    except BaseException as error:
        problem = error
    server = guest_server.Server(namespace, requests, replies)
    for line in requests:
        server.answer(line, problem)
    return 0


def _unit(spec: dict[str, Any]) -> int:
    replies, calls = _take_channels()
    client = guest_remote.Client(replies, calls)
    counts = guest_assertions.Counts()
    problem: str | None = None
    in_threads: list[BaseException | None] = []
    threading.excepthook = lambda about: in_threads.append(about.exc_value)
    try:
        _run_tests(spec, client, counts)
        if in_threads:
            raise in_threads[0] or RuntimeError("a thread of the tests failed")
        if counts.failures:
            raise counts.failures[0]
        if not counts.held or not client.calls:
            problem = "the tests asserted nothing about the solution"
    except BaseException as error:
        problem = _problem(error, spec["test"])
    if client.gone:  # whatever the tests caught
        problem = problem or "the solution's process ended before the tests did"
    verdict = {"passed": problem is None, "problem": problem, "assertions": counts.held, "calls": client.calls}
    os.write(2, json.dumps(verdict).encode() + b"\n")
    return 0


def _run_tests(spec: dict[str, Any], client: guest_remote.Client, counts: guest_assertions.Counts) -> None:
    """The top level of the tests, `check` of the entry point, and what else was planned: functions and classes."""
    for module_name in spec["modules"]:
        sys.modules[module_name] = _Supplied(module_name, client)
    namespace = _load({"setup": spec.get("setup")}, "tests")
    namespace.update((name, client.supplied(name)) for name in spec["names"])
    namespace[guest_assertions.COUNTER] = counts.report
    namespace["__name__"] = "__main__"
    if "unittest" in spec["test"]:
        import unittest

        unittest.main = lambda *args, **kwargs: None  # type: ignore[assignment,misc]
    exec(compile(guest_assertions.counting(spec["test"]), "tests.py", "exec"), namespace)
    if spec["names"] and "check" in namespace and spec.get("entry_point"):
        namespace["check"](namespace[spec["entry_point"]])
    for name in spec["functions"]:
        namespace[name]()
    for name in spec["classes"]:
        _run_class(namespace[name])


def _run_class(kind: type) -> None:
    """All tests of a unittest case, or of a plain class of tests. Raises for the first that fails."""
    import unittest

    if issubclass(kind, unittest.TestCase):
        result = unittest.TestResult()
        result.failfast = True
        unittest.defaultTestLoader.loadTestsFromTestCase(kind).run(result)
        for test, text in (
            *result.errors,
            *result.failures,
            *((test, "unexpected success") for test in result.unexpectedSuccesses),
        ):
            raise AssertionError(f"{str(test).split()[0]}: {text.strip().splitlines()[-1]}")
        return
    for name in sorted(name for name in vars(kind) if name.startswith("test")):
        instance = kind()
        getattr(instance, "setup_method", lambda: None)()
        getattr(instance, name)()
        getattr(instance, "teardown_method", lambda: None)()


def _problem(error: BaseException, test: str) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "tests.py"]
    lines = test.splitlines()
    where = lines[frames[-1].lineno - 1].strip() if frames and frames[-1].lineno else ""
    problem = f"{type(error).__name__}: {guest_server.message_of(error)}".strip(": ")
    return problem + (f" at {where[:120]}" if where else "")


class _Supplied(types.ModuleType):
    """The module `solution` that tests import from."""

    def __init__(self, name: str, client: guest_remote.Client) -> None:
        super().__init__(name)
        self._client = client

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._client.supplied(name)
