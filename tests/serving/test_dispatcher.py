"""What comes for the choices of a request, as its reader gets it."""

from __future__ import annotations

import asyncio

import pytest

from megatron_ring.sampler.scores import TokenScore
from megatron_ring.serving.dispatcher import Dispatcher, Job
from megatron_ring.serving.failures import ApiError
from megatron_ring.serving.replica import Update


def test_a_slow_reader_gets_fewer_and_longer_pieces() -> None:
    async def read() -> None:
        job = Job(Dispatcher([], 4, wakes_all=False), 2)
        score = TokenScore(-1.0, ())
        job.put(0, Update(7, prompt_scores={1: score}))
        job.put(1, Update(8, (5,), (-0.5,)))
        job.put(0, Update(7, (1, 2), (-1.0, -2.0), (score, score)))
        job.put(0, Update(7, (3,), (-3.0,), (score,), reason="stop"))
        job.fail(ApiError(500, "gone"))
        joined = Update(7, (1, 2, 3), (-1.0, -2.0, -3.0), (score,) * 3, {1: score}, "stop")
        assert await job.next() == (0, joined)
        assert await job.next() == (1, Update(8, (5,), (-0.5,)))
        with pytest.raises(ApiError, match="gone"):  # what has come is read first
            await job.next()

    asyncio.run(read())
