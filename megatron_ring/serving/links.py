"""How requests reach the replicas beyond the first: rank 0 holds a connection to the leader of each.

Replicas that share no experts step independently, so that requests cannot travel by collectives: these would bind their
steps together. A connection is a local socket where all processes run on one machine, else TCP to rank 0. What travels is
pickled; both ends prove that they know a key, which rank 0 draws and the process group hands around.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Protocol

from megatron_ring.errors import UserError
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.sampler.requests import GenerationRequest
from megatron_ring.serving.replica import Replica, Update


class ReplicaPort(Protocol):
    """What the dispatcher needs of a replica."""

    def add(self, number: int, request: GenerationRequest) -> None: ...
    def cancel(self, number: int) -> None: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


class Link:
    """One end of a connection; sends from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, *message: Any) -> None:
        """Of no effect when the other end is gone: whoever reads learns of it."""
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            return

    def read(self, take: Callable[..., None], gone: Callable[[], None]) -> None:
        """Have a thread hand every message to `take`, and call `gone` at the end."""

        def work() -> None:
            while True:
                try:
                    message = self._connection.recv()
                except (EOFError, OSError):
                    return gone()
                take(*message)

        threading.Thread(target=work, name="link", daemon=True).start()


class RemoteReplica:
    """A replica whose leader is another process."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def add(self, number: int, request: GenerationRequest) -> None:
        self.link.send("add", number, request)

    def cancel(self, number: int) -> None:
        self.link.send("cancel", number)

    def wake(self) -> None:
        self.link.send("wake")

    def close(self) -> None:
        self.link.send("close")


def connect(context: ParallelContext) -> dict[int, Link]:
    """Links between rank 0 and the other leaders, by rank of the other end. All ranks of the run call it together."""
    machine = (socket.gethostname(), context.leads_replica)
    everyone = collectives.gather_over_world(machine)
    leaders = [rank for rank, (_, leads) in enumerate(everyone) if leads and rank != 0]
    listener = None
    if context.is_main and leaders:
        alone = len({name for name, _ in everyone}) == 1
        address = None if alone else (socket.gethostbyname(socket.gethostname()), 0)
        key = secrets.token_bytes(32)
        listener = Listener(address, family="AF_UNIX" if alone else "AF_INET", backlog=len(leaders), authkey=key)
    told = collectives.gather_over_world(None if listener is None else (listener.address, key))[0]
    links: dict[int, Link] = {}
    if listener is not None:
        while len(links) < len(leaders):
            try:
                connection = listener.accept()
            except (AuthenticationError, OSError):  # a stranger
                continue
            links[connection.recv()] = Link(connection)
        listener.close()
    elif context.leads_replica and told is not None:
        connection = Client(told[0], authkey=told[1])
        connection.send(context.rank)
        links[0] = Link(connection)
    return links


def follow(link: Link, replica: Replica) -> None:
    """On a leader: do what rank 0 says."""

    def take(what: str, *arguments: Any) -> None:
        getattr(replica, {"add": "add", "cancel": "cancel", "wake": "wake", "close": "close"}[what])(*arguments)

    def gone() -> None:
        if not replica.engine.closed:
            replica.fail(UserError("rank 0, which listens for requests, has ended"))

    link.read(take, gone)


def sender(link: Link) -> Callable[[list[Update]], None]:
    """On a leader: send updates to rank 0."""
    return lambda updates: link.send("updates", updates)
