"""What every rank does while the server runs: take the engine's steps together with the others of its replica."""

from __future__ import annotations

from megatron_ring.sampler.engine import Engine
from megatron_ring.serving.replica import Replica

IDLE_SECONDS = 5.0  # collectives of other ranks wait no longer for a leader without work


def run_steps(engine: Engine, replica: Replica | None, gather_seconds: float = 0.0) -> None:
    """Until the engine is closed. What a step brought is sent when the device has got the next one: who writes it to clients
    then has the interpreter to itself.

    Args:
        replica: on leaders.
        gather_seconds: before a step that takes requests more of them are gathered for so long, at most.

    Raises:
        UserError, RuntimeError: a rank of the replica failed, or one that shares experts with it.
    """
    send = None if replica is None else replica.send_taken
    try:
        while not (report := engine.step(meanwhile=send)).closed:
            if replica is None:
                continue
            replica.send_taken()  # where the step has not: it did not decode
            replica.take(report)
            # While a burst comes in, a step that does not wait for it fills few prompts, and takes the host as long.
            if replica.wait(IDLE_SECONDS) if report.idle else replica.expecting:
                replica.gather(gather_seconds, busy=not report.idle)
    finally:
        if replica is not None:
            replica.send_taken()
