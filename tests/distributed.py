"""Runs test functions in real worker processes over gloo. Workers live as long as the test session: importing
megatron-core takes seconds, setting up another layout over the same processes does not."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

TIMEOUT = 120.0  # seconds a call may take before its workers are killed


PORTS = range(20_000, 30_000)  # below those that the system hands out to whoever asks for any
_next_port = itertools.count(os.getpid() * 97)  # other test processes begin elsewhere


def _free_port() -> int:
    for number in itertools.islice(_next_port, len(PORTS)):
        port = PORTS[number % len(PORTS)]
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no free port in {PORTS}")


def _serve(rank: int, size: int, connection: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    import torch

    torch.set_num_threads(1)
    from megatron_ring.parallel import context, prepare

    prepare()

    while True:
        try:
            port, function, arguments = connection.recv()
        except EOFError:
            return
        os.environ["MASTER_PORT"] = str(port)
        try:
            connection.send((True, function(*arguments)))
        except Exception:
            connection.send((False, traceback.format_exc()))
        finally:
            context.shutdown()  # with its process groups: gloo's threads would pile up and eat the machine


class Workers:
    """`size` processes that call a function together."""

    def __init__(self, size: int) -> None:
        self.size = size
        spawn = multiprocessing.get_context("spawn")
        self._connections, self._processes = [], []
        for rank in range(size):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(rank, size, theirs), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(*arguments)` in every process; the results by rank. Raises with the first failing rank's trace."""
        port = _free_port()
        for connection in self._connections:
            connection.send((port, function, arguments))
        results, failures = [], []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(TIMEOUT if not failures else 5.0):
                failures.append(f"rank {rank}: no answer")
                continue
            fine, value = connection.recv()
            results.append(value)
            if not fine:
                failures.append(f"rank {rank}:\n{value}")
        if failures:
            self.close()
            raise AssertionError("\n".join(failures))
        return results

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def close(self) -> None:
        for process, connection in zip(self._processes, self._connections, strict=True):
            with contextlib.suppress(OSError):
                connection.close()
            process.kill()
            process.join()
