"""All that a verifier needs of the sandbox: Python jobs, unit tests apart from the solution, compiled programs."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.sandbox import boxes, bwrap
from megatron_ring.rewards.sandbox.cgroups import Delegation, open_delegation
from megatron_ring.rewards.sandbox.failure import MachineFailure
from megatron_ring.rewards.sandbox.fresh import Fresh, Unsafe
from megatron_ring.rewards.sandbox.images import PYTHON_LIMITS, Image, Limits, image_for, java_main, python_interpreter
from megatron_ring.rewards.sandbox.replies import checked_reply
from megatron_ring.rewards.sandbox.retry import steadily
from megatron_ring.rewards.sandbox.run import Handle, Pipes, RunResult, collect
from megatron_ring.rewards.sandbox.side_by_side import Stopped
from megatron_ring.rewards.sandbox.warm import GRACE, WarmPython, guest_files, job_spec


class CompileError(Exception):
    """The solution does not compile; the message is one line."""


@dataclass(frozen=True, slots=True)
class Program:
    """A solution ready to run on many inputs."""

    image: Image
    command: tuple[str, ...]
    box: str
    delegation: Delegation | None

    def run(self, stdin: bytes, seconds: float | None = None) -> RunResult:
        """One run in a sandbox of its own. Raises `MachineFailure` where the machine allows none."""
        limits = self.image.limits if seconds is None else self.image.limits.within(seconds)
        kind = Fresh if bwrap.isolated() else Unsafe
        fresh = kind(self.command, self.image.binds, limits, box=self.box, own_proc=self.image.own_proc)
        return steadily(lambda alone: fresh.run(stdin, self.delegation, alone), _starved)


def _starved(result: RunResult) -> bool:
    return result.starved


class CodeRunner:
    """Runs solutions; use it as a context manager. Thread-safe.

    Every run is tried again where the machine failed, see `retry`; what it still cannot do raises `MachineFailure`.

    Args:
        warm: run Python from a warm interpreter; otherwise every run has a bubblewrap and an interpreter of its own.
        groups: bound each run by a control group where this process may make some; otherwise it is watched.

    Raises:
        UserError: from the first run, where there is no working sandbox.
    """

    def __init__(self, warm: bool = True, groups: bool = True) -> None:
        self._warm = WarmPython() if warm else None
        self._warm_works = warm
        self._lock = threading.Lock()
        self._closed = False
        self._groups = groups
        self._delegation: Delegation | None = None
        boxes.sweep()

    @property
    def delegation(self) -> Delegation | None:
        """Where the runs' control groups are; None where they are watched instead."""
        with self._lock:
            if self._groups and bwrap.isolated():
                self._groups, self._delegation = False, open_delegation()
            return self._delegation

    def python(self, job: str, fields: Mapping[str, Any], limits: Limits = PYTHON_LIMITS, stdin: bytes = b"") -> RunResult:
        """One job of `guest_jobs`, driven to its end."""
        spec = job_spec(job, limits, fields)
        result = steadily(lambda alone: self._python(spec, limits, stdin, alone), _starved)
        return checked_reply(result, self._script) if job == "serve" else result

    def _script(self, source: str, limits: Limits, stdin: bytes) -> RunResult:
        return self.python("script", {"source": source}, limits, stdin)

    def _python(self, spec: dict[str, Any], limits: Limits, stdin: bytes, alone: bool) -> RunResult:
        started = time.monotonic()
        pipes = Pipes()
        try:
            handle = self._start(spec, limits, pipes.theirs, alone)
        except BaseException:
            pipes.close()
            raise
        pipes.close_theirs()
        return collect(handle, pipes, stdin, limits, started, grace=GRACE)

    def unit_tests(
        self, solution: Mapping[str, Any], tests: Mapping[str, Any], limits: Limits = PYTHON_LIMITS
    ) -> tuple[bool, str]:
        """Run trusted tests against a solution, each in a sandboxed process of its own; passed, and the problem if not."""
        served, tester = job_spec("serve", limits, solution), job_spec("unit", limits, tests)
        result = steadily(lambda alone: self._unit_tests(served, tester, limits, alone), _starved)
        try:
            verdict = json.loads(result.stderr.splitlines()[-1])
            return bool(verdict["passed"]) and result.ok, str(verdict["problem"])
        except (ValueError, KeyError, TypeError, IndexError):
            return False, result.reason or "the tests gave no verdict"

    def _unit_tests(self, served: dict[str, Any], tester: dict[str, Any], limits: Limits, alone: bool) -> RunResult:
        """The result of the tester. It waits while the solution does: starved is either of them."""
        started = time.monotonic()
        with ExitStack() as stack:
            pipes = Pipes()
            stack.callback(pipes.close)
            ends = [*os.pipe(), *os.pipe(), os.open(os.devnull, os.O_RDWR)]
            calls_read, calls_write, replies_read, replies_write, null = ends
            try:
                solution = self._start(served, limits, [calls_read, replies_write, null], alone)
                stack.callback(solution.kill)
                testing = self._start(tester, limits, [replies_read, calls_write, pipes.theirs[2]], alone)
            finally:
                # Our copies must go, or neither process would see the end of the other.
                for descriptor in ends:
                    os.close(descriptor)
            pipes.close_theirs()
            result = collect(testing, pipes, b"", limits, started, grace=GRACE)
            if result.timed_out and not result.starved:
                solution.watch.look()
                return replace(result, starved=solution.watch.starved())
            return result

    @contextmanager
    def program(self, language: str, source: str) -> Iterator[Program]:
        """Compile a solution in any language but Python.

        Raises:
            CompileError: it does not compile.
            UserError: the language's tools are missing.
        """
        bwrap.isolated()
        image = image_for(language)
        main = java_main(source) if language == "java" else "main"
        with ExitStack() as stack:
            try:
                box = stack.enter_context(boxes.box())
                file = box / image.source.format(main=main)
                file.write_bytes(source.encode("utf-8", "replace"))
                if bwrap.account():
                    os.chown(box, bwrap.ACCOUNT, bwrap.ACCOUNT)
            except OSError as error:
                raise MachineFailure(f"no directory for a solution ({error})") from None
            self._compile(image, main, str(box))
            command = tuple(part.replace("{main}", main) for part in image.run)
            yield Program(image, command, str(box), self.delegation)

    def close(self) -> None:
        """End the warm interpreter, with all its runs, and remove the control groups. A later run is `Stopped`."""
        self._closed = True
        if self._warm is not None:
            self._warm.close()
        with self._lock:
            if self._delegation is not None:
                self._delegation.close()
            self._groups, self._delegation = False, None

    def __enter__(self) -> CodeRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compile(self, image: Image, main: str, box: str) -> None:
        if not image.compile:
            return
        command = tuple(part.replace("{main}", main) for part in image.compile)
        kind = Fresh if bwrap.isolated() else Unsafe
        compiler = kind(command, image.compile_binds, image.compile_limits, box=box, writable=True, own_proc=image.own_proc)
        result = steadily(lambda alone: compiler.run(b"", self.delegation, alone), _starved)
        if not result.ok:
            lines = result.stderr.decode("utf-8", "replace").splitlines()
            detail = next((line for line in lines if "error" in line), result.reason)
            raise CompileError(" ".join(detail.replace("/box/", "").split())[:200])

    def _start(self, spec: dict[str, Any], limits: Limits, standard: list[int], alone: bool) -> Handle:
        if self._closed:
            raise Stopped
        isolated = bwrap.isolated()
        if isolated and self._warm is not None and self._warm_works:
            try:
                return self._warm.start(spec, limits, standard, self.delegation, alone)
            except UserError:
                # Nested name spaces can be closed where bubblewrap itself works: then every run gets its own.
                with self._lock:
                    self._warm_works = False
        python, binds = python_interpreter()
        if not isolated:
            spec = spec | {"limits": spec["limits"] | {"processes": None}}  # it would count all that the user runs
        command = (python, "-I", "-B", "/guest/guest_zygote.py", "once", "/guest/spec.json")
        files = guest_files() | {"/guest/spec.json": json.dumps(spec).encode()}
        kind = Fresh if isolated else Unsafe
        return kind(command, binds, limits, files=files, sets_limits=True).start(standard, self.delegation, alone)
