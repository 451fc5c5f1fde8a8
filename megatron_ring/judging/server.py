"""A judge behind a server with OpenAI's interface: several requests at once, a limit of their rate, further tries where the
server is busy."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.judging.cache import ReplyCache
from megatron_ring.judging.verdict import COMPLETE, Reply

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try, where the server names none
LONGEST_PAUSE = 120.0
BUSY = (408, 409, 425, 429)
NOT_FOR_US = (301, 302, 303, 307, 308, 401, 403, 404, 405)  # the address, the key or the model's name is wrong
MOST_BYTES = 1 << 24
ENDS = ("stop", "eos_token")  # words of servers for an answer that ended by itself
NEWER_LIMIT = "max_completion_tokens"  # the name of `max_tokens` that some models want alone


class _Refused(Exception):
    """A status that is no answer. `said`: the beginning of its body; `pause`: seconds that it asks to wait."""

    def __init__(self, status: int, said: str, pause: float | None) -> None:
        super().__init__(f"status {status}: {said}")
        self.status, self.said, self.pause = status, said, pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address is the user's to name: to follow would send it the key, and a GET without the question."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class Server:
    """Where a judge is asked, and how.

    Attributes:
        url: up to and with `/v1`.
        key: sent as a bearer token; None: none.
        requests_per_minute: at most; None: no limit.
        timeout: seconds without a sign of the server.
    """

    url: str
    model: str
    temperature: float
    max_tokens: int
    key: str | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 600.0

    def identity(self) -> dict[str, Any]:
        """What decides its replies."""
        return {"url": self.url, "model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}


class Pace:
    """Lets at most so many calls a minute go on, evenly. For several threads."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self) -> None:
        """Until it is this caller's turn."""
        if not self._gap:
            return
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._gap
        time.sleep(max(0.0, turn - time.monotonic()))


class ServerJudge:
    """A `Generate` that asks a server what the cache does not hold.

    Args:
        report: told the prompts that are answered, and those asked, as it goes.
    """

    def __init__(
        self, server: Server, cache: ReplyCache, pauses: Sequence[float] = PAUSES,
        report: Callable[[int, int], None] = lambda done, asked: None,
    ) -> None:  # fmt: skip
        self.server, self._cache, self._pauses, self._report = server, cache, tuple(pauses), report
        self._pace = Pace(server.requests_per_minute)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._limit = "max_tokens"

    def __call__(self, prompts: Sequence[str]) -> list[Reply]:
        """Raises `UserError` where the server cannot be reached, or refuses us as such."""
        found: dict[str, Reply] = {}
        missing = []
        for prompt in dict.fromkeys(prompts):
            reply = self._cache.find(prompt)
            if reply is None:
                missing.append(prompt)
            else:
                found[prompt] = reply
        total = len(found) + len(missing)
        for prompt, reply in self._replies(missing):
            self._cache.keep(prompt, reply)
            found[prompt] = reply
            self._report(len(found), total)
        return [found[prompt] for prompt in prompts]

    def check(self) -> None:
        """One short question, before there is much to lose. Raises `UserError` where nothing answers at the address, or what
        answers refuses the key, the model or the settings."""
        try:
            self._post("Say yes.", min(16, self.server.max_tokens))
        except _Refused as error:
            if error.status not in BUSY and error.status < 500:
                raise self._wrong(str(error)) from None
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            raise self._wrong(str(error) or type(error).__name__) from None

    def _replies(self, prompts: Sequence[str]) -> Iterator[tuple[str, Reply]]:
        """As they come. The threads do not outlive the process: one that is stuck in a request does not hold its end up."""
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[str, Reply | Exception]] = queue.SimpleQueue()
        stop = threading.Event()
        for prompt in prompts:
            waiting.put(prompt)

        def work() -> None:
            while not stop.is_set():
                try:
                    prompt = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((prompt, self._ask(prompt, stop)))
                except Exception as error:  # whoever waits raises it
                    stop.set()
                    done.put((prompt, error))

        for _ in range(min(self.server.concurrency, len(prompts))):
            threading.Thread(target=work, name="judge", daemon=True).start()
        try:
            for _ in prompts:
                prompt, reply = done.get()
                if isinstance(reply, Exception):
                    raise reply
                yield prompt, reply
        finally:
            stop.set()

    def _ask(self, prompt: str, stop: threading.Event) -> Reply:
        problem, answers = "", False
        for pause in (*self._pauses, None):
            self._pace.wait()
            wanted: float | None = None
            try:
                return self._post(prompt, self.server.max_tokens)
            except _Refused as error:
                answers, problem, wanted = True, str(error), error.pause
                if error.status in NOT_FOR_US:
                    raise self._wrong(problem) from None
                if error.status not in BUSY and error.status < 500:
                    break
            except (OSError, HTTPException, ValueError, RecursionError) as error:
                problem = str(error) or type(error).__name__
            # Not all threads come back at once.
            if pause is not None and stop.wait(min(LONGEST_PAUSE, wanted or pause * random.uniform(0.8, 1.2))):
                break
        if not answers:
            raise self._wrong(problem)
        return Reply("", "", problem=f"the judge's server: {problem}")

    def _post(self, prompt: str, tokens: int) -> Reply:
        """One try. Raises `_Refused` for a status, OSError and HTTPException where there is no answer, ValueError for what
        is no chat completion."""
        limit = self._limit
        try:
            return self._send(prompt, {limit: tokens})
        except _Refused as error:
            if error.status != 400 or limit == NEWER_LIMIT or NEWER_LIMIT not in error.said:
                raise
        self._limit = NEWER_LIMIT
        return self._send(prompt, {NEWER_LIMIT: tokens})

    def _send(self, prompt: str, limit: dict[str, int]) -> Reply:
        body = {"model": self.server.model, "messages": [{"role": "user", "content": prompt}], "n": 1,
                "temperature": self.server.temperature, **limit}  # fmt: skip
        headers = {"Content-Type": "application/json", "User-Agent": "megatron_ring"}
        if self.server.key is not None:
            headers["Authorization"] = f"Bearer {self.server.key}"
        address = f"{self.server.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=self.server.timeout) as answer:
                return read_reply(json.loads(answer.read(MOST_BYTES)))
        except urllib.error.HTTPError as error:
            raise _Refused(error.code, _said(error), _seconds(error.headers.get("retry-after"))) from None

    def _wrong(self, problem: str) -> UserError:
        return UserError(f"--judge.url {self.server.url}: {problem}: check the address up to /v1, the key and --judge.model")


def read_reply(found: Any) -> Reply:
    """The reply in a chat completion. Raises ValueError where it is none."""
    try:
        choice = found["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    except (LookupError, TypeError):
        raise ValueError(f"not a chat completion: {json.dumps(found)[:200]}") from None
    said = finish if isinstance(finish, str) else ""
    return Reply(text if isinstance(text, str) else "", COMPLETE if said in ENDS else said)


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of what came with a status, on one line."""
    try:
        return " ".join(error.read(300).decode("utf-8", "replace").split())
    except (OSError, HTTPException):
        return ""


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; None for a date, or what is none."""
    return float(text) if text and text.strip().isascii() and text.strip().isdigit() else None
