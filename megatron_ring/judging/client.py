"""A client of servers with OpenAI's interface: several chat completions at once, a limit of their rate, further tries where
the server is busy."""

from __future__ import annotations

import contextlib
import json
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from megatron_ring.errors import UserError

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try, where the server names none
LONGEST_PAUSE = 120.0
BUSY = (408, 409, 425, 429)
NOT_FOR_US = (301, 302, 303, 307, 308, 401, 403, 404, 405)  # the address, the key or the model's name is wrong
MOST_BYTES = 1 << 24
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
    """Where to ask, and how.

    Attributes:
        url: up to and with `/v1`.
        key: sent as a bearer token; None: none.
        requests_per_minute: at most; None: no limit.
        timeout: seconds without a sign of the server.
        flags: what the user has given the address and the model's name by.
    """

    url: str
    model: str
    temperature: float
    max_tokens: int
    key: str | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 600.0
    flags: tuple[str, str] = ("--judge.url", "--judge.model")

    def identity(self) -> dict[str, Any]:
        """What decides its replies."""
        return {"url": self.url, "model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}


@dataclass(frozen=True)
class Asked:
    """One conversation to go on with. `messages`: each with role and content; `seed`: where the server is to get one;
    `tools`: what may be called."""

    messages: tuple[Mapping[str, Any], ...]
    seed: int | None = None
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a server has written.

    Attributes:
        text: without the thinking that the server keeps apart; calls of tools, which it does too, are behind it.
        thinking: that.
        finish: what ended it, in the server's word.
        tokens: of all of it, where the server says so.
        problem: why there is no answer to this request.
    """

    text: str
    thinking: str = ""
    finish: str = ""
    tokens: int | None = None
    problem: str | None = None


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


class Client:
    """Asks one server. `pauses`: seconds before each further try."""

    def __init__(self, server: Server, pauses: Sequence[float] = PAUSES) -> None:
        self.server, self._pauses = server, tuple(pauses)
        self._pace = Pace(server.requests_per_minute)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._limit = "max_tokens"

    def check(self) -> None:
        """One short question, before there is much to lose. Raises `UserError` where nothing answers at the address, or what
        answers refuses the key, the model or the settings."""
        try:
            self._post(Asked(({"role": "user", "content": "Say yes."},)), min(16, self.server.max_tokens))
        except _Refused as error:
            if error.status not in BUSY and error.status < 500:
                raise self._wrong(str(error)) from None
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            raise self._wrong(_problem_of(error)) from None

    def answers(self, requests: Sequence[Asked]) -> Iterator[tuple[int, Answer]]:
        """Place and answer of each request, as they come. The threads do not outlive the process: one that is stuck in a
        request does not hold its end up.

        Raises:
            UserError: the server cannot be reached, or refuses us as such.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Answer | Exception]] = queue.SimpleQueue()
        stop = threading.Event()
        for place in range(len(requests)):
            waiting.put(place)

        def work() -> None:
            while not stop.is_set():
                try:
                    place = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((place, self.ask(requests[place], stop)))
                except Exception as error:  # whoever waits raises it
                    stop.set()
                    done.put((place, error))

        for _ in range(min(self.server.concurrency, len(requests))):
            threading.Thread(target=work, name="client", daemon=True).start()
        try:
            for _ in requests:
                place, answer = done.get()
                if isinstance(answer, Exception):
                    raise answer
                yield place, answer
        finally:
            stop.set()

    def ask(self, asked: Asked, stop: threading.Event) -> Answer:
        """One answer, after as many tries as it takes. For several threads.

        Args:
            stop: no further try is made once it is set.

        Raises:
            UserError: the server cannot be reached, or refuses us as such.
        """
        problem, answers = "", False
        for pause in (*self._pauses, None):
            self._pace.wait()
            wanted: float | None = None
            try:
                return self._post(asked, self.server.max_tokens)
            except _Refused as error:
                answers, problem, wanted = True, str(error), error.pause
                if error.status in NOT_FOR_US:
                    raise self._wrong(problem) from None
                if error.status not in BUSY and error.status < 500:
                    break
            except (OSError, HTTPException, ValueError, RecursionError) as error:
                problem = _problem_of(error)
            # Not all threads come back at once.
            if pause is not None and stop.wait(min(LONGEST_PAUSE, wanted or pause * random.uniform(0.8, 1.2))):
                break
        if not answers:
            raise self._wrong(problem)
        return Answer("", problem=problem)

    def _post(self, asked: Asked, tokens: int) -> Answer:
        """One try. Raises `_Refused` for a status, OSError and HTTPException where there is no answer, ValueError for what
        is no chat completion."""
        limit = self._limit
        try:
            return self._send(asked, {limit: tokens})
        except _Refused as error:
            if error.status != 400 or limit == NEWER_LIMIT or NEWER_LIMIT not in error.said:
                raise
        self._limit = NEWER_LIMIT
        return self._send(asked, {NEWER_LIMIT: tokens})

    def _send(self, asked: Asked, limit: dict[str, int]) -> Answer:
        seed: dict[str, Any] = {} if asked.seed is None else {"seed": asked.seed}
        seed |= {"tools": list(asked.tools)} if asked.tools else {}
        body = {"model": self.server.model, "messages": list(asked.messages), "n": 1,
                "temperature": self.server.temperature, **seed, **limit}  # fmt: skip
        headers = {"Content-Type": "application/json", "User-Agent": "megatron_ring"}
        if self.server.key is not None:
            headers["Authorization"] = f"Bearer {self.server.key}"
        address = f"{self.server.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=self.server.timeout) as answer:
                return read_answer(json.loads(answer.read(MOST_BYTES)))
        except urllib.error.HTTPError as error:
            raise _Refused(error.code, _said(error), _seconds(error.headers.get("retry-after"))) from None

    def _wrong(self, problem: str) -> UserError:
        url, model = self.server.flags
        return UserError(f"{url} {self.server.url}: {problem}: check the address up to /v1, the key and {model}")


def _problem_of(error: Exception) -> str:
    """What went wrong, without what urllib puts around it."""
    inner = getattr(error, "reason", error) if isinstance(error, urllib.error.URLError) else error
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def read_answer(found: Any) -> Answer:
    """The answer in a chat completion. Raises ValueError where it is none."""
    try:
        choice = found["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, thinking = (
            message.get("content") if message.get("tool_calls") else message["content"],
            message.get("reasoning_content") or message.get("reasoning"),
        )
        tokens = (found.get("usage") or {}).get("completion_tokens")
        calls = [_written(call["function"]) for call in message.get("tool_calls") or ()]
    except (LookupError, TypeError, AttributeError):
        raise ValueError(f"not a chat completion: {json.dumps(found)[:200]}") from None
    said, thought, ended = (value if isinstance(value, str) else "" for value in (text, thinking, finish))
    return Answer("\n".join(filter(None, [said, *calls])), thought, ended, tokens if isinstance(tokens, int) else None)


def _written(function: Mapping[str, Any]) -> str:
    """A call of a tool as a model writes it."""
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):  # the verifier says what is wrong with it
            arguments = json.loads(arguments)
    call = {"name": function["name"], "arguments": arguments}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of what came with a status, on one line."""
    try:
        return " ".join(error.read(300).decode("utf-8", "replace").split())
    except (OSError, HTTPException):
        return ""


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; None for a date, or what is none."""
    return float(text) if text and text.strip().isascii() and text.strip().isdigit() else None
