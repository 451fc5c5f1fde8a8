"""The time of the steps of a sampler that bench_sampler.py runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_ring.sampler.requests import Sampled
    from megatron_ring.sampler.runner import Land
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.sampler.scoring import PromptScores
    from megatron_ring.sampler.step import Step, StepShape
    from tools.bench_sampler_figure import Turn
    from tools.sampler_floor import Floor
else:
    from bench_sampler_figure import Turn
    from sampler_floor import Floor


@dataclass(eq=False)
class Timed:
    """A step in the air: "prefill" or "decode", the seconds that it takes at the least, tokens, sequences that it decodes,
    and passes that only decode."""

    kind: str
    floor: float
    tokens: int
    rows: int
    passes: int


class Watch:
    """Times the steps of a sampler, and adds up the least time that they could take. A step lasts from its launch, or from
    the end of the one before where that is later, until it has landed. One that fills prompts is waited for at once, as is
    what is in the air before it: the device is at the fill when the tokens are there."""

    def __init__(self, sampler: Sampler, rates: dict[str, float]) -> None:
        self.least = Floor.of(sampler, rates)
        runner = sampler.runner
        self._launch, runner.launch = runner.launch, self.launch  # type: ignore[method-assign]
        self.start()

    def start(self) -> None:
        self.seconds = {"decode": 0.0, "prefill": 0.0}  # steps that only decode, and the others
        self.floor = {"decode": 0.0, "prefill": 0.0}
        self.decoded = {"decode": 0, "prefill": 0}
        self.floor_sum = {"decode": 0.0, "prefill": 0.0}  # of decoding alone: both times
        self.passes = self.reading_longer = 0
        self.prefilled = self.widest = 0
        self.turns: list[Turn] = []
        self.began = self.mark = time.perf_counter()
        self.air: list[Timed] = []

    def launch(self, step: Step, shape: StepShape, meanwhile: Callable[[], None] | None = None) -> Land:
        from megatron_ring.parallel.device import synchronize

        kind, floor = "prefill" if step.chunks else "decode", 0.0
        for turn in range(step.horizon if step.decoding else 0):
            held = sum(sequence.cached + 1 + turn for sequence in step.decoding)
            reading, multiplying = self.least.decoding(len(step.decoding), held)
            floor += max(reading, multiplying)
            self.floor_sum[kind] += reading + multiplying
            self.passes += 1
            self.reading_longer += reading >= multiplying
        floor += sum(self.least.prefill(chunk.start, chunk.count) for chunk in step.chunks)
        self.floor[kind] += floor
        self.prefilled += sum(chunk.count for chunk in step.chunks)
        rows, passes = len(step.decoding), 0 if step.chunks or not step.decoding else step.horizon
        self.widest = max(self.widest, rows)
        if step.chunks:
            synchronize()
            self.end()
        if not self.air:
            self.mark = time.perf_counter()
        timed = Timed(kind, floor, rows * step.horizon, rows, passes)
        self.air.append(timed)
        land = self._launch(step, shape, meanwhile)
        if step.chunks:
            synchronize()
            self.end()

        def landed() -> tuple[list[Sampled], PromptScores]:
            found = land()
            if timed in self.air:
                self.end(timed)
            return found

        return landed

    def end(self, last: Timed | None = None) -> None:
        """The oldest step in the air has ended, and all up to `last`, or all."""
        while self.air:
            one, now = self.air.pop(0), time.perf_counter()
            seconds, self.mark = now - self.mark, now
            self.seconds[one.kind] += seconds
            self.decoded[one.kind] += one.tokens
            self.turns.append(Turn(now - self.began, seconds, one.floor, one.tokens, one.rows, one.passes))
            if one is last:
                return
