"""Room for the KV cache: the trainer's state is away while responses are sampled (`--offload-optimizer`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from megatron_ring.run.phases import Phases
from megatron_ring.sampler.sampler import Sampler
from megatron_ring.training.offload import StateOffload


class SamplingOffload:
    """Sends the trainer's state away and brings it back, with the time that both take; does nothing without a state."""

    def __init__(self, state: StateOffload | None, sampler: Sampler, phases: Phases) -> None:
        """`state`: None where it is to stay on the device. `sampler`: its cache makes way before the state comes back."""
        self._state, self._sampler, self._phases = state, sampler, phases

    @contextmanager
    def away(self) -> Iterator[None]:
        """Within it the state is in host memory. It is back afterwards, also where sampling failed."""
        if self._state is None:
            yield
            return
        with self._phases("offload"):
            self._state.send_away()
        self._phases.hold("offloaded", self._state.host_bytes)
        self._phases.hold("freed", self._state.freed_bytes)
        try:
            yield
        finally:
            self._sampler.release()
            with self._phases("return"):
                self._state.bring_back()
