"""What every rank does while the server runs: take the engine's steps together with the others of its replica."""

from __future__ import annotations

from megatron_ring.sampler.engine import Engine
from megatron_ring.serving.replica import Replica

IDLE_SECONDS = 5.0  # collectives of other ranks wait no longer for a leader without work


def run_steps(engine: Engine, replica: Replica | None) -> None:
    """Until the engine is closed. `replica`: on leaders.

    Raises:
        UserError, RuntimeError: a rank of the replica failed, or one that shares experts with it.
    """
    while not (report := engine.step()).closed:
        if replica is None:
            continue
        replica.take(report)
        if report.idle:
            replica.wait(IDLE_SECONDS)
