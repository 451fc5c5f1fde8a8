"""What every rank does while the server runs: take the engine's steps together with the others of its replica."""

from __future__ import annotations

from megatron_ring.sampler.engine import Engine
from megatron_ring.serving.replica import Replica

IDLE_SECONDS = 5.0  # collectives of other ranks wait no longer for a leader without work


def run_steps(engine: Engine, replica: Replica | None) -> None:
    """Until the engine is closed. `replica`: on leaders. What a step brought is sent when the device has got the next one:
    who writes it to clients then has the interpreter to itself.

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
            if report.idle:
                replica.wait(IDLE_SECONDS)
    finally:
        if replica is not None:
            replica.send_taken()
