"""The trainer's state is away within the block and back behind it, however the block ends."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import NotFiniteError
from tests.checkpoint.test_saving import steps, trainer_for
from tests.training.test_offload import storages


def away_and_back() -> list[str]:
    from megatron_ring.rollout.offload import SamplingOffload
    from megatron_ring.run.phases import Phases
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    trainer, here = trainer_for(ParallelConfig())
    steps(trainer, here, 0, 1)
    have, whole = storages(trainer)
    assert have == whole and whole["moments"] > 0
    sampler, phases = Sampler(trainer.model, here, SamplingConfig(), eos_id=0), Phases()
    offload = SamplingOffload(trainer.offload, sampler, phases)
    with pytest.raises(NotFiniteError), offload.away():
        sampler.generate([GenerationRequest([1, 2], 0, 2)])
        assert storages(trainer)[0]["moments"] == 0 and storages(trainer)[0]["gradients"] == 0
        raise NotFiniteError("the weights are broken")
    assert storages(trainer) == (have, whole)
    with offload.away():
        assert storages(trainer)[0]["moments"] == 0
    assert storages(trainer) == (have, whole)
    figures = phases.finish()
    with SamplingOffload(None, sampler, phases).away():
        assert storages(trainer) == (have, whole)
    return sorted(name for name, value in figures.items() if (value > 0 and "off" in name) or "return" in name)


@pytest.mark.distributed
def test_the_state_is_back_however_sampling_ends(run_on: Any) -> None:
    (told,) = run_on(1, away_and_back)
    assert {"time/offload", "time/return", "memory/offloaded_gib"} <= set(told)
