"""Starts Python commands as a user would, forked from a process that has loaded their libraries already.

`start` and `run` are `subprocess.Popen` and `subprocess.run` for the commands of this project. A command of this interpreter
(`-m`, `-c` or a script) comes from the fork server; anything else, and everything where `really` is asked for, is started
by the system. Shell scripts find a Python of the same kind in `forked_python()`.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "FORK_SERVER"  # the environment variable that tells `forked_python` where the server is
# Variables of these names are read when the interpreter starts or a library is imported, so that a child of the server
# would not see another value; but for these two: PYTHONPATH is honoured, PYTHON is of our scripts.
READ_EARLY = ("PYTHON", "OMP_", "MKL_", "TORCH_", "TRITON_", "CUDA_", "HF_", "LD_", "LC_", "LANG")
READ_LATE = ("PYTHON", "PYTHONPATH")
SECONDS_TO_START = 300.0
_PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def environment(root: Path = ROOT, **more: str) -> dict[str, str]:
    """Of a command started by a test: the package before what is on its path, one thread. `root`: a changed copy of it."""
    path = os.pathsep.join(filter(None, [*dict.fromkeys((str(root), str(ROOT))), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def _read_early(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.startswith(READ_EARLY) and name not in READ_LATE}


class _Server:
    """A fork server with the package below `root` loaded, and a Python for shell scripts that is forked from it."""

    def __init__(self, root: Path = ROOT) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fork-server-"))
        self.address = str(self.folder / "socket")
        self.environment = environment(root)
        command = [sys.executable, "-m", "tests.forkserver", self.address]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, cwd=root, env=self.environment, **streams)  # type: ignore[call-overload]
        atexit.register(self.close)
        self.python = self.folder / "python"
        given = {"EARLY": _read_early(self.environment), "READ_EARLY": READ_EARLY, "READ_LATE": READ_LATE}
        first = [f"#!{sys.executable} -ISE\n", *(f"{name} = {value!r}\n" for name, value in given.items())]
        self.python.write_text("".join(first) + Path(__file__).with_name("forked_python.py").read_text())
        self.python.chmod(0o755)
        deadline = time.monotonic() + SECONDS_TO_START
        while not os.path.exists(self.address):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the fork server did not start: {self.process.poll()}")
            time.sleep(0.01)

    def serves(self, arguments: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether a command can be forked and would not notice."""
        if len(arguments) < 2 or arguments[0] != sys.executable:
            return False
        if arguments[1] not in ("-m", "-c") and arguments[1].startswith("-"):
            return False
        return _read_early(env) == _read_early(self.environment)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # with its children
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@functools.cache
def _server(root: Path) -> _Server | None:
    """None where there is a GPU: a process that has looked for one cannot be forked."""
    return None if torch.cuda.is_available() else _Server(root)


def forget(root: Path) -> None:
    """End the server of a changed copy of the package, where nothing more is started from it."""
    if (server := _server(root)) is not None:
        server.close()


def forked_python(**more: str) -> dict[str, str]:
    """The environment of a shell script whose `$PYTHON` is forked from the server, with `more` variables. What a command
    with this environment starts by `sys.executable` is forked too."""
    server = _server(ROOT)
    if server is None:
        return environment(PYTHON=sys.executable, **more)
    return environment(PYTHON=str(server.python), **{ADDRESS: server.address}, **more)


class ForkedProcess(subprocess.Popen[Any]):
    """A `Popen` of a child of the fork server."""

    def __init__(self, server: _Server, arguments: Sequence[str], **options: Any) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server.address)
        self._told = b""
        super().__init__(list(arguments), **options)

    def _execute_child(self, *given: Any) -> None:
        """Ask the server in the place of fork and exec. The order of what `Popen` gives differs between Pythons."""
        asked = inspect.signature(subprocess.Popen._execute_child).bind(self, *given).arguments  # type: ignore[attr-defined]
        request = {"arguments": asked["args"][1:], "cwd": str(asked["cwd"] or os.getcwd()), "environment": asked["env"],
                   "new_session": asked["start_new_session"]}  # fmt: skip
        ends = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        streams = [number if end == -1 else end for number, end in enumerate(ends)]
        ask(self._connection, request, streams)
        for end, ours in zip(ends, (self.stdin, self.stdout, self.stderr), strict=True):
            if end != -1 and ours is not None:
                os.close(end)
        self._closed_child_pipe_fds = True
        if getattr(self, "_devnull", None) is not None:
            os.close(self._devnull)
        word, number = self._line(SECONDS_TO_START)
        assert word == "pid", word
        self.pid, self._child_created = number, True

    def _line(self, seconds: float | None) -> tuple[str, int]:
        """The server's next line. Raises `TimeoutError`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._told:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._connection], [], [], left)[0]:
                raise TimeoutError
            data = self._connection.recv(4096)
            if not data:
                raise RuntimeError("the fork server is gone")
            self._told += data
        line, self._told = self._told.split(b"\n", 1)
        word, number = line.split()
        return word.decode(), int(number)

    def poll(self) -> int | None:
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            try:
                _, self.returncode = self._line(timeout)
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            self._connection.close()
        return self.returncode

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        """What the destructor asks: the server reaps its children itself."""
        return self.returncode


def ask(connection: socket.socket, request: dict[str, Any], streams: Sequence[int]) -> None:
    """Send the server a request with the standard streams of the process that is to be."""
    data = json.dumps(request).encode() + b"\n"
    if rest := data[socket.send_fds(connection, [data], streams) :]:  # the other end may be gone where nothing is left
        connection.sendall(rest)


def start(
    arguments: Sequence[str | Path], really: bool = False, root: Path = ROOT, **options: Any
) -> subprocess.Popen[Any]:  # fmt: skip
    """`Popen` in the project's folder with the environment of a test, unless `options` say otherwise. `root`: a folder with
    a changed copy of the package, which is then what is imported."""
    options = {"cwd": root, "env": environment(root), **options}
    words = [str(argument) for argument in arguments]
    server = None if really else _server(root)
    if server is not None and server.serves(words, options["env"]):
        return ForkedProcess(server, words, **options)
    return subprocess.Popen(words, **options)


def run(
    arguments: Sequence[str | Path], timeout: float = 300.0, really: bool = False, input: Any = None, text: bool = True,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:  # fmt: skip
    """`subprocess.run` of `start`, with its output captured."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with start(arguments, really, text=text, **{**_PIPES, **options}) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def default_signals() -> None:
    """Let processes that this one starts have Ctrl-C's default action, also where this one was started to ignore it, as
    behind `nohup` or `&`: a signal that has a handler is reset in them, one that is ignored stays so."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
