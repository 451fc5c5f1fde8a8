"""From a checked request of a client to its answer: what the engine is asked, and how its updates become an answer or a
stream of events.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from megatron_ring.errors import UserError
from megatron_ring.sampler.engine import Engine
from megatron_ring.sampler.requests import GenerationRequest, request_seed
from megatron_ring.serving.answers import Answer
from megatron_ring.serving.dispatcher import Dispatcher, Job
from megatron_ring.serving.failures import ApiError, bad
from megatron_ring.serving.protocol import Ask
from megatron_ring.serving.statistics import Statistics

GONE = 499  # the client went away: nobody reads this status


class Sampling:
    """Answers to what clients ask of the model.

    Args:
        engine: of this process; it checks requests for all replicas.
        limit: tokens of a prompt and its answer, at most.
        usual_tokens: new tokens where a client says nothing, at most.
    """

    def __init__(
        self, engine: Engine, dispatcher: Dispatcher, statistics: Statistics, limit: int, usual_tokens: int
    ) -> None:
        self.engine, self.dispatcher, self.statistics = engine, dispatcher, statistics
        self.limit, self.usual_tokens = limit, usual_tokens

    def requests(self, ask: Ask, prompts: list[list[int]], echo: bool) -> list[list[GenerationRequest]]:
        """What the engine is asked, by prompt. Raises `ApiError` where it does not fit."""
        scored = ask.top_logprobs is not None and (ask.top_logprobs > 0 or echo)
        columns = frozenset({"logprobs"} if ask.top_logprobs is not None else ())
        seed = secrets.randbits(62) if ask.seed is None else ask.seed
        groups = []
        for prompt in prompts:
            room = self.limit - len(prompt)
            wanted = min(self.usual_tokens, room) if ask.max_tokens is None else max(1, ask.max_tokens)
            if room < 1 or wanted > room:
                asked = "" if ask.max_tokens is None else f" and {ask.max_tokens} new ones"
                message = f"a prompt of {len(prompt)} tokens{asked}: the model's context is {self.limit} tokens"
                message += "; shorten the prompt or lower max_tokens"
                raise ApiError(400, message, "prompt", "context_length_exceeded")
            first = GenerationRequest(
                prompt, request_seed(seed, 0), wanted, sampling=ask.sampling, columns=columns,
                top_logprobs=ask.top_logprobs if scored else None,
                prompt_scores=scored and echo,
            )  # fmt: skip
            try:
                ask.sampling.check_vocabulary(self.engine.runner.model.ring_config.vocab_size)
                self.engine.check(first)
            except UserError as error:
                raise bad(str(error).replace("--sampling.stop-token-ids", "stop_token_ids")) from None
            # One choice computes the log-probabilities of the prompt for all.
            others = [replace(first, seed=request_seed(seed, place), prompt_scores=False) for place in range(1, ask.n)]
            groups.append([first, *others])
        return groups

    async def answer(self, request: Request, answer: Answer, groups: list[list[GenerationRequest]]) -> Response:
        """Have the choices sampled; they are given up when the client goes away."""
        job = self.dispatcher.submit(groups)
        self.statistics.prompt_tokens += sum(len(group[0].prompt_tokens) for group in groups)
        if answer.ask.stream:
            stream = _Stream(job, self._stream(answer, job))
            await stream.begin(request.receive)
            return stream
        watch = asyncio.ensure_future(_until_gone(request.receive))
        work = asyncio.ensure_future(self._collect(answer, job))
        try:
            await asyncio.wait({watch, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=GONE)
            work.result()
        finally:
            job.cancel()
            for task in (watch, work):
                task.cancel()
        return Response(_encode(answer.whole()), media_type="application/json")

    async def _collect(self, answer: Answer, job: Job) -> None:
        async for _ in self._events(answer, job):
            pass

    async def _events(self, answer: Answer, job: Job) -> AsyncIterator[tuple[list[dict[str, Any]], bool]]:
        """What a stream says of each update, and whether it was the last one. Notes the times of what comes. Choices that
        are not read to the end are given up."""
        began = time.monotonic()
        last: dict[int, float] = {}
        try:
            left = job.count
            while left:
                place, update = await job.next()
                now = time.monotonic()
                if update.tokens:
                    self.statistics.new_tokens += len(update.tokens)
                    if place in last:
                        self.statistics.between_tokens.add(now - last[place])
                    else:
                        self.statistics.first_token.add(now - began)
                    last[place] = now
                events = answer.feed(place, update)
                left -= update.reason is not None
                yield (events if left else events + answer.last_event()), not left
        finally:
            job.cancel()

    async def _stream(self, answer: Answer, job: Job) -> AsyncIterator[bytes]:
        """Raises `ApiError` where nothing has come before it."""
        began, told = time.monotonic(), False
        try:
            async for events, last in self._events(answer, job):
                # In one piece: each that is written may cost a turn of the interpreter's lock.
                data = b"".join([b"data: " + _encode(event) + b"\n\n" for event in events])
                if data or last:
                    told = True
                    yield data + b"data: [DONE]\n\n" if last else data
        except ApiError as error:
            if not told:
                raise
            yield b"data: " + _encode(error.to_json()) + b"\n\n"  # told in the stream, as what came before it was
        finally:
            job.cancel()
            if told:  # a refusal is counted as others are
                self.statistics.request.add(time.monotonic() - began)


class _Stream(StreamingResponse):
    """Server-sent events. A client may go away before the first of them: its choices are given up all the same. One task
    beside the stream watches for that, in place of Starlette's group of two. The head is sent with the first event: while a
    burst comes in there is more urgent work, and a refusal before it has a status of its own."""

    def __init__(self, job: Job, events: AsyncIterator[bytes]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._job, self._events = job, aiter(events)

    async def begin(self, receive: Receive) -> None:
        """Wait for the first event. Raises `ApiError` where there is none."""
        self._watch = asyncio.ensure_future(self._end_when_gone(receive))
        try:
            self._first = await anext(self._events, b"")
        except BaseException:
            self._end()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.stream_response(send)
        finally:
            self._end()

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        data = self._first
        while data:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            data = await anext(self._events, b"")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _end(self) -> None:
        self._watch.cancel()
        self._job.cancel()

    async def _end_when_gone(self, receive: Receive) -> None:
        await _until_gone(receive)
        self._job.cancel()
        self._job.fail(ApiError(GONE, "the client went away"))  # nobody reads it: the stream ends


def _encode(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


async def _until_gone(receive: Receive) -> None:
    """Until the client has closed its connection. The body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
