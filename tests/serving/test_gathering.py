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

    def gather(name: str, most: float, busy: bool = False) -> None:
        began = time.monotonic()
        replica.gather(most, busy)
        seconds[name] = time.monotonic() - began

    replica.expect()
    assert not replica.wait(0.0)  # a client that begins is no work yet
    replica.add(0, GenerationRequest([5], 0, 2))
    assert replica.wait(1.0)
    replica.wake()
    replica.gather(0.001)
    assert replica.wait(0.0)  # what woke it is not lost in gathering
    replica.expect()
    gather("alone", 60.0)
    gather("off", 0.0)
    stop = threading.Event()

    def ring() -> None:
        while not stop.is_set():
            replica.expect()

    caller = threading.Thread(target=ring)
    caller.start()
    gather("without end", 0.05)
    replica.expect()
    gather("busy", 60.0, busy=True)
    stop.set()
    caller.join()
    for number in (1, 2, 3):
        replica.add(number, GenerationRequest([6], number, 2))
    gather("full", 60.0)
    assert engine.arrived == 4
    replica.close()
    run_steps(engine, replica, 0.01)
    return seconds, sorted({update.number for update in answered if update.reason is not None})


def begun_beside() -> tuple[list[list[int]], list[int]]:
    """What each step fills, by lengths of prompts, where three requests come one after another while another one decodes;
    and which of them were answered."""
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.serving import replica as replicas
    from megatron_ring.serving.loop import run_steps

    model, here = make(ParallelConfig())
    engine = Sampler(model, here, SamplingConfig(max_batch=3, kv_tokens=1024), EOS).engine()
    filled: list[list[int]] = []
    launch = engine.runner.launch

    def logging(step: Any, *about: Any) -> Any:
        filled.append([chunk.count + 1 for chunk in step.chunks])
        return launch(step, *about)

    engine.runner.launch = logging  # type: ignore[method-assign]
    answered: set[int] = set()
    callers: list[threading.Thread] = []

    def come() -> None:
        for number in (1, 2, 3):
            replica.add(number, GenerationRequest([7] * (10 + number), number, 2))
            time.sleep(0.05)
        replica.close()

    def send(updates: list[Any]) -> None:
        answered.update(update.number for update in updates if update.reason is not None)
        if not callers:  # from now on a gathering waits for them, however slowly they come
            patch.setattr(replicas, "QUIET", 60.0)
            patch.setattr(replicas, "BUSY_SECONDS", 60.0)
            callers.append(threading.Thread(target=come))
            callers[0].start()
            assert replica.wait(60.0)
            replica.wake()
            replica.expect()

    replica = replicas.Replica(engine, send)
    replica.add(0, GenerationRequest([5, 6], 0, 60))
    replica.wait(0.0)
    with pytest.MonkeyPatch.context() as patch:
        run_steps(engine, replica, 60.0)
    return [counts for counts in filled if counts], sorted(answered)


@pytest.mark.distributed
def test_a_burst_is_gathered_while_others_decode(run_on: Any) -> None:
    ((filled, answered),) = run_on(1, begun_beside)
    assert filled == [[2], [11, 12], [13]]  # the third waits for a row
    assert answered == [0, 1, 2, 3]


@pytest.mark.distributed
def test_a_burst_is_gathered(run_on: Any) -> None:
    ((seconds, answered),) = run_on(1, gathered)
    assert 0.003 <= seconds["alone"] < 10 and seconds["without end"] < 10 and seconds["busy"] < 10, seconds
    assert seconds["full"] < 1 and seconds["off"] < 1
    assert answered == [0, 1, 2, 3]
