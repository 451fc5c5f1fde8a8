"""Requests to replicas, updates to whoever waits for them. Lives in the event loop of rank 0; replicas answer from other
threads.

A prompt's choices go to one replica, where they share the pages of the prompt: the one that has fewest choices unfinished.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from megatron_ring.sampler.requests import GenerationRequest
from megatron_ring.serving.failures import ApiError
from megatron_ring.serving.links import ReplicaPort
from megatron_ring.serving.replica import Update


class Job:
    """The choices of one HTTP request. `next` gives what comes, with the place of the choice. What comes for a choice before
    its last news were read joins them: a client that reads slowly, or a busy event loop, gets fewer and longer pieces."""

    def __init__(self, dispatcher: Dispatcher, count: int) -> None:
        self._dispatcher = dispatcher
        self._news: dict[int, Update] = {}  # by place
        self._error: ApiError | None = None
        self._bell = asyncio.Event()
        self.numbers: dict[int, int] = {}  # the server's number -> place; those unfinished
        self.count = count

    @property
    def unfinished(self) -> bool:
        return bool(self.numbers)

    def put(self, place: int, update: Update) -> None:
        before = self._news.get(place)
        self._news[place] = update if before is None else before.joined(update)
        self._bell.set()

    def fail(self, error: ApiError) -> None:
        """After what has come, `next` raises this."""
        self._error = self._error or error
        self._bell.set()

    async def next(self) -> tuple[int, Update]:
        """Raises `ApiError` where the server has failed or ends, or a choice was refused."""
        while not self._news:
            if self._error is not None:
                raise self._error
            self._bell.clear()
            await self._bell.wait()
        place = next(iter(self._news))
        return place, self._news.pop(place)

    def cancel(self) -> None:
        """Give up what is unfinished."""
        self._dispatcher.cancel(self)


class Dispatcher:
    """See the module.

    Args:
        capacity: choices that may be unfinished at once.
        wakes_all: replicas step together: all of them are told of work.

    Attributes:
        stopping: nothing new is taken.
        closed: replicas end, or have ended, as they were told to.
        cancelled: choices given up before they were finished.
    """

    def __init__(self, replicas: Sequence[ReplicaPort], capacity: int, wakes_all: bool) -> None:
        self.replicas: list[ReplicaPort] = []
        self.loads: list[int] = []
        self.capacity, self._wakes_all = capacity, wakes_all
        self.add_replicas(replicas)
        self.stopping = self.closed = False
        self.failure: str | None = None
        self.cancelled = 0
        self._numbers = itertools.count()
        self._jobs: dict[int, tuple[Job, int]] = {}  # number -> job, replica

    def add_replicas(self, replicas: Sequence[ReplicaPort]) -> None:
        """Before the first request."""
        self.replicas += replicas
        self.loads += [0] * len(replicas)

    @property
    def unfinished(self) -> int:
        """Choices."""
        return len(self._jobs)

    def check_room(self, count: int) -> None:
        """Raise `ApiError` where so many more choices cannot be taken now."""
        if self.failure is not None:
            raise ApiError(500, self.failure)
        if self.stopping:
            raise ApiError(503, "the server is stopping")
        if count > self.capacity:
            raise ApiError(400, f"{count} choices in one request: the server takes {self.capacity} at most")
        if self.unfinished + count > self.capacity:
            raise ApiError(429, f"{self.unfinished} choices are under way, and the queue is full: try again later")

    def submit(self, groups: Sequence[Sequence[GenerationRequest]]) -> Job:
        """Take the choices of one HTTP request, those of each prompt together. Raises `ApiError`."""
        count = sum(map(len, groups))
        self.check_room(count)
        job, place = Job(self, count), 0
        for group in groups:
            replica = min(range(len(self.replicas)), key=self.loads.__getitem__)
            for request in group:
                number = next(self._numbers)
                self._jobs[number] = (job, replica)
                job.numbers[number] = place
                place += 1
                self.loads[replica] += 1
                self.replicas[replica].add(number, request)
        if self._wakes_all:
            for port in self.replicas:
                port.wake()
        return job

    def deliver(self, updates: Sequence[Update]) -> None:
        """In the event loop: what a replica has sent."""
        for update in updates:
            if update.number not in self._jobs:
                continue  # cancelled meanwhile
            job, _ = self._jobs[update.number]
            place = job.numbers[update.number]
            if update.refused is not None:
                self._forget(update.number)
                job.fail(ApiError(400, update.refused))
                continue
            if update.reason is not None:
                self._forget(update.number)
            job.put(place, update)

    def cancel(self, job: Job) -> None:
        """Give up the choices of `job` that are unfinished; their pages become free."""
        for number in list(job.numbers):
            self.replicas[self._jobs[number][1]].cancel(number)
            self._forget(number)
            self.cancelled += 1

    def give_up(self, error: ApiError) -> None:
        """Tell everyone who waits that nothing more will come."""
        for job in {id(job): job for job, _ in self._jobs.values()}.values():
            self.cancel(job)
            job.fail(error)

    def fail(self, reason: str) -> None:
        """The model is gone."""
        self.failure = self.failure or reason
        self.give_up(ApiError(500, self.failure))

    def close(self) -> None:
        """Nothing more will come to any replica."""
        self.stopping = self.closed = True
        for port in self.replicas:
            port.close()

    def _forget(self, number: int) -> None:
        job, replica = self._jobs.pop(number)
        del job.numbers[number]
        self.loads[replica] -= 1
