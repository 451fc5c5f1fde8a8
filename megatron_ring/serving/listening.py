"""uvicorn in a thread of rank 0, beside the engine's steps, and the end of both."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from megatron_ring.config.serve import ServeConfig
from megatron_ring.errors import UserError
from megatron_ring.serving.dispatcher import Dispatcher
from megatron_ring.serving.failures import ApiError
from megatron_ring.serving.precedence import Precedence

LAST_WORDS = 2.0  # seconds for answers that say why the server ends
LOOK = 0.05  # seconds between two looks for a signal


class StopSignals:
    """SIGTERM and Ctrl-C ask for the end; on ranks beside the first they are left to it."""

    def __init__(self) -> None:
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True  # no lock, no event: this may interrupt whoever holds one


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `UserError` where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: {reason}: give another address or port") from None
    return listening


class Front:
    """The HTTP server's thread. `close` and `fail` belong to the thread that steps.

    Attributes:
        precedence: what comes from clients is read while nobody is in it.
        on_data: called when something comes, a connection first.
    """

    def __init__(self, config: ServeConfig, listening: socket.socket, dispatcher: Dispatcher, signals: StopSignals) -> None:
        self.config, self.dispatcher, self._signals, self._socket = config, dispatcher, signals, listening
        self.precedence = Precedence()
        self.on_data: Callable[[], None] = lambda: None
        self.loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None

    def start(self, app: Starlette) -> None:
        precedence, on_data = self.precedence, self.on_data

        class Connection(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                on_data()
                super().connection_made(transport)

            def data_received(self, data: bytes) -> None:
                on_data()
                precedence.stand_aside()
                super().data_received(data)

        settings = uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", http=Connection, ws="none", server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=max(1, round(LAST_WORDS)), h11_max_incomplete_event_size=65536,
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()

    def say(self) -> None:
        """Where it listens, on stderr."""
        host, port = self._socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"serve: {self.config.served_name} on http://{shown}:{port}", file=sys.stderr, flush=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        ending = asyncio.ensure_future(self._end_when_asked())
        await self._server.serve(sockets=[self._socket])
        ending.cancel()

    async def _end_when_asked(self) -> None:
        """After a signal: what is under way may finish within the grace."""
        while not self._signals.asked:
            await asyncio.sleep(LOOK)
        self.dispatcher.stopping = True
        until = time.monotonic() + self.config.grace_seconds
        while self.dispatcher.unfinished and time.monotonic() < until:
            await asyncio.sleep(LOOK)
        self.dispatcher.give_up(ApiError(503, "the server is stopping"))
        self.dispatcher.close()

    def fail(self, reason: str) -> None:
        """Tell all clients why there will be no answer."""
        self._call(self.dispatcher.fail, reason)
        time.sleep(0.2)

    def close(self) -> None:
        """End the thread, answers that are being written first."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join(LAST_WORDS + 2.0)

    def deliver(self, updates: list) -> None:
        """To the event loop, from any thread."""
        self._call(self.dispatcher.deliver, updates)

    def _call(self, function, argument) -> None:  # type: ignore[no-untyped-def]
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all who waited
            self.loop.call_soon_threadsafe(function, argument)
