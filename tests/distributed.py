"""Runs test functions in real worker processes over gloo. Workers live as long as the test session, and set up one layout
after another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

from tests.forkserver import free_ports
from tests.processes import environment, start

TIMEOUT = 120.0  # seconds a call may take before its workers are killed
_PROGRAM = "from tests.distributed import serve; serve()"
_ports = free_ports()


def serve() -> None:
    """What a worker does: call the functions that come, in a process group of their own each."""
    import torch

    torch.set_num_threads(1)
    from megatron_ring.parallel import context, prepare

    prepare()

    connection = Client(sys.argv[1])
    multiprocessing.current_process().authkey = connection.recv_bytes()  # tensors are passed on by it
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
        self._connections: list[Any] = []
        self._processes = []
        with tempfile.TemporaryDirectory() as folder:
            for rank in range(size):
                address = str(Path(folder, f"rank-{rank}"))
                given = environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1")
                with Listener(address) as listener:
                    self._processes.append(start([sys.executable, "-c", _PROGRAM, address], env=given))
                    connection = listener.accept()
                connection.send_bytes(bytes(multiprocessing.current_process().authkey))
                self._connections.append(connection)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(*arguments)` in every process; the results by rank. Raises with the first failing rank's trace."""
        port = next(_ports)
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
        return all(process.poll() is None for process in self._processes)

    def close(self) -> None:
        for process, connection in zip(self._processes, self._connections, strict=True):
            with contextlib.suppress(OSError):
                connection.close()
            process.kill()
            process.wait()
