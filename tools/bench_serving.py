#!/usr/bin/env python
"""Load on a server with OpenAI's interface: tokens per second, time to the first token, time between deliveries.

Requests are sent all at once, or so many at a time, and streamed. Prompts and lengths are those of bench_sampler.py with the
same flags.

    python tools/bench_serving.py --preset ring-lite --prompts 256 --samples 1 --prompt-tokens 512 --new-tokens 512
    python tools/bench_serving.py --url http://127.0.0.1:8001 --model NAME --extra '{"ignore_eos": true}'   # another server

Prints one JSON object; exit status 1 where a request failed. "between_deliveries" is the time between two pieces of a stream
that hold text, as users see them; "per_token" is the time from a request's first piece to its last, over its tokens between.
"all_begun" is when the last request had its first token, "first_ended" when the first one had all; "client_busy" the share
of a processor that this process took: near 1 it is the load that is measured, not the server.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.errors import UserError, run_main

if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
    from megatron_ring.sampler.requests import GenerationRequest
    from tools.bench_sampler import BenchSampler, requests_of
else:
    from bench_sampler import BenchSampler, requests_of


SENDING = 4  # clients that connect or send at once


@dataclass(frozen=True, kw_only=True)
class BenchServing:
    """What is asked of which server."""

    url: str = "http://127.0.0.1:8000"
    """Address of the server."""
    model: str | None = None
    """Name of the model (default: the first that the server lists)."""
    preset: str = "ring-tiny"
    """Model shape: prompts are drawn from its vocabulary."""
    prompts: int = 256
    """Different prompts."""
    samples: int = 1
    """Requests of each prompt."""
    prompt_tokens: int = 512
    """Tokens of a prompt."""
    new_tokens: int = 128
    """Tokens of an answer, the longest one's where lengths differ."""
    lengths: Literal["equal", "long-tail"] = "equal"
    """Answers all alike; or log-normal, an eighth of --new-tokens in the median, cut at --new-tokens."""
    clients: int | None = None
    """Requests under way at once (default: all of them)."""
    extra: str = "{}"
    """JSON object of further fields of each request."""
    repeats: int = 1
    """Times that the load is put on the server; the last one counts, the others are told by their seconds."""
    wait_seconds: float = 0.0
    """Wait so long for the server to come up."""

    def __post_init__(self) -> None:
        require(self.repeats >= 1, f"--repeats is {self.repeats}, below 1")
        require(self.clients is None or self.clients >= 1, f"--clients is {self.clients}, below 1")
        require(urlsplit(self.url).scheme == "http" and bool(urlsplit(self.url).netloc), f"--url {self.url}: give http://…")
        try:
            found = json.loads(self.extra)
        except ValueError as error:
            raise UserError(f"--extra: not JSON: {error}") from None
        require(isinstance(found, dict), "--extra: give a JSON object")


@dataclass
class Seen:
    """What a client saw of its request; times in seconds since the beginning of the load.

    Attributes:
        sent, ended: when it was sent, and when all was there.
        pieces: when a piece with text came.
        tokens: of the answer, as the server counts them.
        problem: what went wrong.
    """

    sent: float
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0
    tokens: int = 0
    problem: str | None = None


class Answer:
    """One HTTP exchange on a connection of its own: a status, and the data of its body as they come."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.status = 0

    async def head(self) -> None:
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self._chunked = "transfer-encoding: chunked" in lines

    async def body(self) -> AsyncIterator[bytes]:
        if not self._chunked:
            while data := await self._reader.read(65536):
                yield data
            return
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            yield (await self._reader.readexactly(size + 2))[:-2]


async def send(url: str, path: str, data: bytes | None) -> tuple[Answer, asyncio.StreamWriter]:
    """Send a request over a connection of its own; the writer is to be closed."""
    host = urlsplit(url).netloc
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port or 80)
    verb, data = ("GET", b"") if data is None else ("POST", data)
    head = f"{verb} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return Answer(reader), writer


async def get(url: str, path: str) -> Any:
    answer, writer = await send(url, path, None)
    await answer.head()
    data = b"".join([piece async for piece in answer.body()])
    writer.close()
    return json.loads(data)


async def name_of_model(config: BenchServing) -> str:
    """As it is given, or as the server says. Raises `UserError` where nobody answers in time."""
    until = time.monotonic() + config.wait_seconds
    while True:
        try:
            return config.model or str((await get(config.url, "/v1/models"))["data"][0]["id"])
        except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
            if time.monotonic() > until:
                raise UserError(
                    f"--url {config.url}: no server with OpenAI's interface: {error or type(error).__name__}"
                ) from None
        await asyncio.sleep(0.5)


async def ask(url: str, body: bytes, began: float, sending: asyncio.Semaphore) -> Seen:
    """Send one request and read its stream to the end."""
    seen = Seen(time.perf_counter() - began)
    try:
        async with sending:
            answer, writer = await send(url, "/v1/completions", body)
        await answer.head()
        rest = b""
        async for data in answer.body():
            now = time.perf_counter() - began
            rest = (rest + data).replace(b"\r\n", b"\n")
            *events, rest = rest.split(b"\n\n") if answer.status == 200 else (rest,)
            for event in events:
                read_event(seen, event, now)
        if answer.status != 200:
            seen.problem = f"status {answer.status}: {rest[:200].decode(errors='replace')}"
        writer.close()
    except (OSError, EOFError, ValueError, LookupError, asyncio.LimitOverrunError) as error:
        seen.problem = f"{type(error).__name__}: {error}"
    seen.ended = time.perf_counter() - began
    if seen.problem is None and not seen.tokens:
        seen.problem = "the stream ended without a count of tokens"
    return seen


def read_event(seen: Seen, event: bytes, now: float) -> None:
    """Take what an event of a stream says."""
    lines = [line for line in event.splitlines() if line.startswith(b"data:")]  # others are comments, or name the event
    data = b"\n".join(line[5:].removeprefix(b" ") for line in lines)
    if not data or data == b"[DONE]":
        return
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError(f"an event that is no object: {data[:100].decode(errors='replace')}")
    if found.get("error"):
        seen.problem = str(found["error"])[:200]
    if any(choice.get("text") for choice in found.get("choices") or ()):
        seen.pieces.append(now)
    if found.get("usage"):
        seen.tokens = found["usage"]["completion_tokens"]


async def load(config: BenchServing, model: str, requests: Sequence[GenerationRequest]) -> list[Seen]:
    """All requests; so many at once as there are clients."""
    places = asyncio.Semaphore(config.clients or len(requests))
    shared = {"model": model, "temperature": 1.0, "stream": True, "stream_options": {"include_usage": True}}
    shared |= json.loads(config.extra)
    asked = [{"prompt": one.prompt_tokens, "max_tokens": one.max_new_tokens, "seed": one.seed} for one in requests]
    bodies = [json.dumps(shared | one).encode() for one in asked]  # no part of what is measured
    # All clients are one process. Few connect at once, so that the first do not wait for the connections of all others.
    sending = asyncio.Semaphore(SENDING)
    began = time.perf_counter()

    async def one(body: bytes) -> Seen:
        async with places:
            return await ask(config.url, body, began, sending)

    return list(await asyncio.gather(*map(one, bodies)))


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """In seconds; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    late = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"p50": statistics.median(ordered), "p99": late, "most": ordered[-1]}


def summary(seen: Sequence[Seen]) -> dict[str, Any]:
    """What all clients saw together."""
    fine = [one for one in seen if one.problem is None]
    problems = [one.problem for one in seen if one.problem is not None]
    seconds, tokens = max(one.ended for one in seen), sum(one.tokens for one in fine)
    many, begun = [one for one in fine if len(one.pieces) > 1], [one.pieces[0] for one in fine if one.pieces]
    return {
        "requests": len(seen), "failed": len(problems), "first_problem": next(iter(problems), None), "seconds": seconds,
        "tokens": tokens, "tokens_per_second": tokens / seconds, "deliveries": sum(len(one.pieces) for one in fine),
        "time_to_first_token": quantiles([one.pieces[0] - one.sent for one in fine if one.pieces]),
        "between_deliveries": quantiles([b - a for one in many for a, b in zip(one.pieces, one.pieces[1:], strict=False)]),
        "all_begun": max(begun, default=None), "first_ended": min((one.ended for one in fine), default=None),
        "per_token": quantiles([(one.pieces[-1] - one.pieces[0]) / max(1, one.tokens - 1) for one in many]),
    }  # fmt: skip


def measured(config: BenchServing, model: str, requests: Sequence[GenerationRequest]) -> dict[str, Any]:
    """One load, and what it cost this process."""
    worked = time.process_time()
    found = summary(asyncio.run(load(config, model, requests)))
    return found | {"client_busy": (time.process_time() - worked) / found["seconds"]}


def main(config: BenchServing) -> int:
    asked = BenchSampler(
        preset=config.preset, prompts=config.prompts, samples=config.samples, prompt_tokens=config.prompt_tokens,
        new_tokens=config.new_tokens, lengths=config.lengths,
    )  # fmt: skip
    requests = requests_of(asked)
    model = asyncio.run(name_of_model(config))
    runs = [measured(config, model, requests) for _ in range(config.repeats)]
    out = {
        "url": config.url, "model": model, "prompts": config.prompts, "samples": config.samples, "clients": config.clients,
        "prompt_tokens": config.prompt_tokens, "new_tokens": config.new_tokens, "lengths": config.lengths,
    }  # fmt: skip
    print(json.dumps(out | {"earlier_seconds": [run["seconds"] for run in runs[:-1]]} | runs[-1]), flush=True)
    return int(any(run["failed"] for run in runs))


if __name__ == "__main__":
    run_main(lambda: sys.exit(main(parse(BenchServing, "bench_serving", "Load on a server with OpenAI's interface."))))
