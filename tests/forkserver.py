"""A process that has loaded torch, megatron-core and the package, and forks one child for each Python command asked of it.

Loading them takes five seconds, a fork some milliseconds. A child is a process as any other: it has its own arguments,
environment, folder, standard streams, process id and session, it can be killed, and it ends as the interpreter ends.

    python -m tests.forkserver SOCKET

Each connection asks for one process: a JSON line `{"arguments", "cwd", "environment", "new_session"}` with the three
standard streams attached. Answers are the lines `pid N`, and `status N` when the process has ended. Closing the
connection kills the process. The server ends when its standard input is closed. It never starts a thread: only one that
has none can be forked at any time.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import pkgutil
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from megatron_ring.garbage import kept_what_is_there

PACKAGE = "megatron_ring"
# What the mains, the tools and the tests' own modules import besides, when they first need it.
LIBRARIES = ("torch.utils.tensorboard", "transformers", "tokenizers", "tyro", "rich.progress", "yaml", "safetensors.torch",
             "torch.distributed.run", "torch.distributed.checkpoint", "pytest", "hypothesis", "math_verify",
             "transformers.tokenization_utils_tokenizers", "transformers.convert_slow_tokenizer", "pydantic.dataclasses",
             "pydantic.type_adapter", "pydantic.plugin._loader", "mpmath", "torch.utils.serialization",
             "multiprocessing.spawn")  # fmt: skip
PORTS = range(20_000, 30_000)  # below those that the system hands out to whoever asks for any
SECONDS_TO_END = 30.0  # that the other ranks have when one has failed, as under torchrun
MAX_REQUEST = 1 << 20


def free_ports() -> Iterator[int]:
    """Ports that nobody listens on now; other processes begin elsewhere."""
    for number in itertools.count(os.getpid() * 97):
        port = PORTS[number % len(PORTS)]
        with socket.socket() as found:
            taken = found.connect_ex(("127.0.0.1", port)) == 0
        if not taken:
            yield port


def preload() -> None:
    """Import the package's rooms and the libraries below them. The mains at its top level stay out: they run as
    `__main__`."""
    importlib.import_module(f"{PACKAGE}.parallel").prepare()
    package = importlib.import_module(PACKAGE)
    names = [info.name for info in pkgutil.walk_packages(package.__path__, f"{PACKAGE}.") if info.name.count(".") > 1]
    for name in [*LIBRARIES, *names]:
        with contextlib.suppress(ImportError):  # optional: a child that needs it says so
            importlib.import_module(name)
    config, cli = (importlib.import_module(f"{PACKAGE}.config.{name}") for name in ("sft", "cli"))
    needed = ["--run-dir", "r", "--preset", "ring-tiny", "--data.train", "t", "--data.tokenizer", "t"]
    cli.parse(config.SFTConfig, "ring-sft", "", needed)  # what the parser of command lines imports when it is first used
    importlib.import_module(f"{PACKAGE}.rewards.unit_conversion").prepare()


@dataclasses.dataclass
class Child:
    """A process, the handle that tells its end, and whoever asked for it."""

    pid: int
    handle: int
    connection: socket.socket
    over: bool = False


def _end_no_libraries() -> None:
    """torch takes down its libraries of operators one by one when a process ends: what goes with the process anyway."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        if (alive := finalizer.peek()) is not None and alive[1].__module__ == "torch.library":
            finalizer.atexit = False


def serve(path: str) -> dict[str, Any]:
    """Fork for whoever asks. Returns in each child, with what it is to be."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)  # who sees it can connect
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    children: list[Child] = []
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:  # the test process has ended
                for child in children:
                    os.kill(child.pid, signal.SIGKILL)
                os._exit(0)
            child = key.data
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request, streams = _receive(connection)
                pid = os.fork()
                if pid == 0:
                    _let_go(selector, listener, children)
                    _settle(request, streams)
                    connection.sendall(f"pid {os.getpid()}\n".encode())
                    connection.close()
                    return request
                for stream in streams:
                    os.close(stream)
                child = Child(pid, os.pidfd_open(pid), connection)
                children.append(child)
                selector.register(child.handle, selectors.EVENT_READ, child)
                selector.register(connection, selectors.EVENT_READ, child)
            elif child.over:
                pass  # both events came together
            elif key.fileobj is child.connection:  # whoever asked is gone
                os.kill(child.pid, signal.SIGKILL)
                selector.unregister(child.connection)
            else:
                _report(child, selector)
                children.remove(child)


def _report(child: Child, selector: selectors.BaseSelector) -> None:
    """Tell whoever asked how a child has ended."""
    child.over = True
    _, status = os.waitpid(child.pid, 0)
    with contextlib.suppress(OSError):
        child.connection.sendall(f"status {os.waitstatus_to_exitcode(status)}\n".encode())
    selector.unregister(child.handle)
    with contextlib.suppress(KeyError):
        selector.unregister(child.connection)
    os.close(child.handle)
    child.connection.close()


def _let_go(selector: selectors.BaseSelector, listener: socket.socket, children: list[Child]) -> None:
    """In a new child: close what is the server's."""
    selector.close()
    listener.close()
    for child in children:
        os.close(child.handle)
        child.connection.close()


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, streams, _, _ = socket.recv_fds(connection, MAX_REQUEST, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(MAX_REQUEST)
    request: dict[str, Any] = json.loads(data)
    return request, streams


def _stream(like: Any, number: int, mode: str) -> Any:
    """A standard stream as the interpreter made the server's, which however know of another file whether it can be sought
    in."""
    stream: Any = open(number, mode, encoding=like.encoding, errors=like.errors, closefd=False)  # noqa: SIM115
    if mode == "w":
        stream.reconfigure(line_buffering=like.line_buffering, write_through=like.write_through)
    return stream


def _settle(request: dict[str, Any], streams: list[int]) -> None:
    """Make this child what a new process would be."""
    if request["new_session"]:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = sys.__stdin__ = _stream(sys.stdin, 0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(sys.stdout, 1, "w")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(sys.stderr, 2, "w")  # type: ignore[misc]
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    sys.modules["numpy"].random.seed()


def become(arguments: list[str], path: list[str]) -> None:
    """Run `-m MODULE`, `-c CODE` or a script with its arguments, as the interpreter would with `path` behind the first entry
    of sys.path. With torchrun as the module: start its ranks."""
    if arguments[:2] == ["-m", "torch.distributed.run"]:
        arguments = _as_rank(arguments[2:])
    extra = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    first = {"-m": os.getcwd(), "-c": ""}.get(arguments[0], os.path.dirname(os.path.abspath(arguments[0])))
    sys.path[:] = [first, *extra, *path]
    if "FORK_SERVER" in os.environ:  # whoever asked has the Python of `processes.forked_python`
        sys.executable = os.environ["PYTHON"]
    for entry in extra:
        if (custom := Path(entry, "sitecustomize.py")).is_file():
            runpy.run_path(str(custom))
    if arguments[0] == "-c":
        sys.argv[:] = ["-c", *arguments[2:]]
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), module.__dict__)
    elif arguments[0] == "-m":
        sys.argv[:] = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def live(arguments: list[str], path: list[str]) -> NoReturn:
    """`become`, and end as the interpreter does: threads are awaited, exit functions run, streams flushed. What it would
    take down beyond that, half a second's work, goes with the process."""
    status: object = 0
    try:
        become(arguments, path)
    except SystemExit as error:
        status = error.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 120
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((status or 0) & 0xFF)


def _as_rank(flags: list[str]) -> list[str]:
    """As torchrun on one machine: start the processes, each in a session of its own, and wait. Returns in each of them with
    the arguments of its Python. Here the process ends: with 1 if one of them failed, when the others have been ended."""
    if flags[:2] != ["--standalone", "--nproc-per-node"]:
        raise ValueError(f"torchrun with {flags[:3]} is not one of this server's")
    size, arguments = int(flags[2]), flags[3:]
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": next(free_ports()), "TORCHELASTIC_RUN_ID": "tests"}  # fmt: skip
    ranks: list[int] = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            variables = common | {"RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({name: str(value) for name, value in variables.items()})
            return arguments
        ranks.append(pid)

    def end(_signal: int, _frame: object) -> None:
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    failed = False
    while ranks:
        pid, status = os.wait()
        ranks.remove(pid)
        if status and not failed:
            failed = True
            for other in ranks:
                os.kill(other, signal.SIGTERM)
            signal.signal(signal.SIGALRM, end)
            signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_END)
    os._exit(int(failed))


def main() -> None:
    path = [entry for entry in sys.path[1:] if entry not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks
    began = time.monotonic()
    preload()  # with searches for garbage: what one frees at the end would lie ready for tools that measure their memory
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        raise SystemExit(f"loaded in {time.monotonic() - began:.1f} s, but {len(threads)} threads run: cannot be forked")
    _end_no_libraries()
    # Children neither walk nor copy what is here, and do not begin to when a run in them ends: half a second of each.
    with kept_what_is_there():
        live(serve(sys.argv[1])["arguments"], path)


if __name__ == "__main__":
    main()
