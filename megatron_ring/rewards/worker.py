"""The process in which verifiers run: reads requests from a socket, answers each, and dies with its parent.

`RewardPool` starts it with three arguments: the socket's file descriptor, the parent's pid, the memory limit in bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
from typing import Any

HEADER = struct.Struct("!Q")

_PR_SET_PDEATHSIG = 1
# Algebra leaves caches behind. A worker whose address space has grown to this share of its limit is replaced.
_RETIRE_AT = 0.5


def send_message(connection: socket.socket, message: Any) -> None:
    """Send one JSON message with its length before it."""
    payload = json.dumps(message).encode()
    connection.sendall(HEADER.pack(len(payload)) + payload)


def _receive(connection: socket.socket, size: int) -> bytes | None:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _limit_process(parent: int, memory_bytes: int) -> None:
    """Die with the parent, even in the middle of a computation; no core files; a bounded address space."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl took effect
        raise SystemExit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _address_space() -> int:
    """Bytes mapped now. Not `ru_maxrss`: a process started by a large one inherits that one's peak."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def main() -> None:
    """Serve requests until the parent closes the socket."""
    descriptor, parent, memory_bytes = (int(argument) for argument in sys.argv[1:4])
    _limit_process(parent, memory_bytes)
    connection = socket.socket(fileno=descriptor)
    try:
        from megatron_ring.rewards import math
        from megatron_ring.rewards.interface import ScoreRequest
        from megatron_ring.rewards.registry import verifier_for

        math.prepare()
    except Exception as error:
        send_message(connection, {"error": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from None
    send_message(connection, {"ready": True})

    while (header := _receive(connection, HEADER.size)) is not None:
        payload = _receive(connection, HEADER.unpack(header)[0])
        if payload is None:
            break
        request = ScoreRequest(**json.loads(payload))
        try:
            reward = verifier_for(request.domain).score(request)
            value, reason = reward.value, reward.reason
        except Exception as error:
            # Never the error's own text: printing an expression can take forever.
            value, reason = 0.0, f"the verifier failed with {type(error).__name__}"
        grown = _address_space() > _RETIRE_AT * memory_bytes
        send_message(connection, {"value": value, "reason": reason, "retire": grown})
        if grown:
            break
