"""The process in which verifiers run: reads requests from a socket, answers each, and dies with its parent.

`RewardPool` starts it with four arguments: the socket's file descriptor, the parent's pid, the kind of worker, the memory
limit in bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import struct
import sys
from typing import Any

from megatron_ring.lifetime import die_with_parent
from megatron_ring.rewards.loading import tell_when_loading

HEADER = struct.Struct("!Q")

# Algebra leaves caches behind. A worker whose address space has grown to this share of its limit is replaced.
_RETIRE_AT = 0.5
_OOM_SCORE = 500  # of 1000, which is a run's


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


def _limit_process(parent: int, memory_bytes: int | None) -> None:
    """Die with the parent, even in the middle of a computation; no core files; an address space bounded where asked."""
    die_with_parent()
    if os.getppid() != parent:  # it died before that took effect
        raise SystemExit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _offer_to_the_kernel()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _offer_to_the_kernel() -> None:
    """Where memory is short the kernel ends workers before the trainer, and what a sandbox runs before workers."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as score:
        if int(score.read()) < _OOM_SCORE:
            score.seek(0)
            score.write(str(_OOM_SCORE))


def _address_space() -> int:
    """Bytes mapped now. Not `ru_maxrss`: a process started by a large one inherits that one's peak."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _prepare(kind: str) -> None:
    """Load what the first item would otherwise be charged for."""
    if kind == "answers":
        from megatron_ring.rewards import math

        math.prepare()
    elif kind == "instructions":
        from megatron_ring.rewards import instructions

        instructions.prepare()
    else:
        from megatron_ring.rewards import code

        code.prepare()


def main() -> None:
    """Serve requests until the parent closes the socket."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    # What the sandbox runs would inherit the limit; there each run has its own.
    memory_bytes = None if sys.argv[3] == "code" else int(sys.argv[4])
    _limit_process(parent, memory_bytes)
    connection = socket.socket(fileno=descriptor)
    from megatron_ring.errors import UserError
    from megatron_ring.rewards.sandbox.failure import MachineFailure

    try:
        from megatron_ring.rewards.interface import ScoreRequest
        from megatron_ring.rewards.registry import verifier_for

        _prepare(sys.argv[3])
    except UserError as error:
        send_message(connection, {"user_error": str(error)})
        raise SystemExit(1) from None
    except MachineFailure as error:
        send_message(connection, {"machine": str(error)})
        raise SystemExit(1) from None
    except Exception as error:
        send_message(connection, {"error": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from None
    send_message(connection, {"ready": True})
    tell_when_loading(lambda begins: send_message(connection, {"loading": begins}))

    while (header := _receive(connection, HEADER.size)) is not None:
        payload = _receive(connection, HEADER.unpack(header)[0])
        if payload is None:
            break
        request = ScoreRequest(**json.loads(payload))
        try:
            reward = verifier_for(request.domain).score(request)
            answer = {"value": reward.value, "reason": reward.reason, "detail": dict(reward.detail)}
        except UserError as error:
            send_message(connection, {"user_error": str(error)})
            continue
        except MachineFailure as error:
            send_message(connection, {"machine": str(error)})
            continue
        except Exception as error:
            # Never the error's own text: printing an expression can take forever.
            answer = {"value": 0.0, "reason": f"the verifier failed with {type(error).__name__}", "detail": {}}
        grown = memory_bytes is not None and _address_space() > _RETIRE_AT * memory_bytes
        send_message(connection, {**answer, "retire": grown})
        if grown:
            break
