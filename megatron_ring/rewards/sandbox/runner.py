"""All that a verifier needs of the sandbox: Python jobs, unit tests apart from the solution, compiled programs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.sandbox import bwrap
from megatron_ring.rewards.sandbox.images import PYTHON_LIMITS, Image, Limits, image_for, java_main, python_interpreter
from megatron_ring.rewards.sandbox.run import Fresh, Handle, Pipes, RunResult, Unsafe, collect
from megatron_ring.rewards.sandbox.warm import GRACE, WarmPython, guest_files, job_spec


class CompileError(Exception):
    """The solution does not compile; the message is one line."""


@dataclass(frozen=True, slots=True)
class Program:
    """A solution ready to run on many inputs."""

    image: Image
    command: tuple[str, ...]
    box: str

    def run(self, stdin: bytes, seconds: float | None = None) -> RunResult:
        """One run in a sandbox of its own."""
        limits = self.image.limits if seconds is None else self.image.limits.within(seconds)
        kind = Fresh if bwrap.isolated() else Unsafe
        return kind(self.command, self.image.binds, limits, box=self.box, own_proc=self.image.own_proc).run(stdin)


class CodeRunner:
    """Runs solutions; use it as a context manager. Thread-safe.

    Args:
        warm: run Python from a warm interpreter; otherwise every run has a bubblewrap and an interpreter of its own.

    Raises:
        UserError: from the first run, where there is no working sandbox.
    """

    def __init__(self, warm: bool = True) -> None:
        self._warm = WarmPython() if warm else None
        self._warm_works = warm
        self._lock = threading.Lock()

    def python(self, job: str, fields: Mapping[str, Any], limits: Limits = PYTHON_LIMITS, stdin: bytes = b"") -> RunResult:
        """One job of `guest_jobs`, driven to its end."""
        started = time.monotonic()
        pipes = Pipes()
        try:
            handle = self._start(job_spec(job, limits, fields), limits, pipes.theirs)
        except BaseException:
            pipes.close()
            raise
        pipes.close_theirs()
        return collect(handle, pipes, stdin, limits, started, grace=GRACE)

    def unit_tests(
        self, solution: Mapping[str, Any], tests: Mapping[str, Any], limits: Limits = PYTHON_LIMITS
    ) -> tuple[bool, str]:
        """Run trusted tests against a solution, each in a sandboxed process of its own; passed, and the problem if not."""
        started = time.monotonic()
        pipes = Pipes()
        calls_read, calls_write = os.pipe()
        replies_read, replies_write = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        served: Handle | None = None
        try:
            served = self._start(job_spec("serve", limits, solution), limits, [calls_read, replies_write, null])
            tester = self._start(job_spec("unit", limits, tests), limits, [replies_read, calls_write, pipes.theirs[2]])
            # Our copies must go, or neither process would see the end of the other.
            for descriptor in (calls_read, calls_write, replies_read, replies_write, null):
                os.close(descriptor)
            pipes.close_theirs()
            result = collect(tester, pipes, b"", limits, started, grace=GRACE)
        finally:
            if served is not None:
                served.kill()
        try:
            verdict = json.loads(result.stderr.splitlines()[-1])
            return bool(verdict["passed"]) and result.ok, str(verdict["problem"])
        except (ValueError, KeyError, TypeError, IndexError):
            return False, result.reason or "the tests gave no verdict"

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
        box = tempfile.mkdtemp(prefix="sandbox-")
        try:
            file = Path(box) / image.source.format(main=main)
            file.write_bytes(source.encode("utf-8", "replace"))
            self._compile(image, main, box)
            yield Program(image, tuple(part.replace("{main}", main) for part in image.run), box)
        finally:
            shutil.rmtree(box, ignore_errors=True)

    def close(self) -> None:
        """End the warm interpreter."""
        if self._warm is not None:
            self._warm.close()

    def __enter__(self) -> CodeRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compile(self, image: Image, main: str, box: str) -> None:
        if bwrap.account():
            os.chown(box, bwrap.ACCOUNT, bwrap.ACCOUNT)
        if image.compile:
            command = tuple(part.replace("{main}", main) for part in image.compile)
            kind = Fresh if bwrap.isolated() else Unsafe
            compiler = kind(
                command, image.compile_binds, image.compile_limits, box=box, writable=True, own_proc=image.own_proc
            )
            result = compiler.run()
            if not result.ok:
                lines = result.stderr.decode("utf-8", "replace").splitlines()
                detail = next((line for line in lines if "error" in line), result.reason)
                raise CompileError(" ".join(detail.replace("/box/", "").split())[:200])

    def _start(self, spec: dict[str, Any], limits: Limits, standard: list[int]) -> Handle:
        isolated = bwrap.isolated()
        if isolated and self._warm is not None and self._warm_works:
            try:
                return self._warm.start(spec, standard)
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
        return kind(command, binds, limits, files=files, sets_limits=True).start(standard)
