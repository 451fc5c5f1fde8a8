"""The wait for a burst before the first step: short for a request that comes alone, and never beyond a full batch."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import SamplingConfig
from tests.sampler.generating import EOS, make


def gathered() -> tuple[dict[str, float], list[int]]:
    """Seconds of several waits, and the requests that were then answered."""
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.serving.loop import run_steps
    from megatron_ring.serving.replica import Replica, Update

    model, here = make(ParallelConfig())
    engine = Sampler(model, here, SamplingConfig(max_batch=3, kv_tokens=1024), EOS).engine()
    answered: list[Update] = []
    replica = Replica(engine, answered.extend)
    seconds: dict[str, float] = {}

    def gather(name: str, most: float) -> None:
        began = time.monotonic()
        replica.gather(most)
        seconds[name] = time.monotonic() - began

    replica.add(0, GenerationRequest([5], 0, 2))
    assert replica.wait(1.0)
    gather("alone", 60.0)
    gather("off", 0.0)
    stop = threading.Event()

    def ring() -> None:
        while not stop.is_set():
            replica.wake()

    caller = threading.Thread(target=ring)
    caller.start()
    gather("without end", 0.05)
    stop.set()
    caller.join()
    for number in (1, 2, 3):
        replica.add(number, GenerationRequest([6], number, 2))
    gather("full", 60.0)
    assert engine.arrived == 4
    replica.close()
    run_steps(engine, replica, 0.01)
    return seconds, sorted({update.number for update in answered if update.reason is not None})


@pytest.mark.distributed
def test_a_burst_is_gathered(run_on: Any) -> None:
    ((seconds, answered),) = run_on(1, gathered)
    assert 0.003 <= seconds["alone"] < 10 and seconds["without end"] < 10, seconds
    assert seconds["full"] < 1 and seconds["off"] < 1
    assert answered == [0, 1, 2, 3]
