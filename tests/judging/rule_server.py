"""A server with OpenAI's interface whose model is a rule: it judges what stands between a prompt's marks."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


def completion(text: str, finish: str | None = "stop") -> Answer:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, {}, json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def by_length(prompt: str) -> str:
    """Judges by the length of answers alone: long ones are liked."""
    code = re.findall(r"^Verdict ([A-Z]{6}): [A-Z]+$", prompt, re.M)
    if not code:
        return "Yes."
    lengths = [
        len(text)
        for text in re.findall(r"^--- answer(?: [AB])? [A-Z]{6} ---\n(.*?)\n--- end of answer", prompt, re.S | re.M)
    ]
    if "RELATION" in prompt:
        value = "A=B" if lengths[0] == lengths[1] else "A>B" if lengths[0] > lengths[1] else "B>>A"
    elif "UNANSWERED" in prompt:
        value = ("UNANSWERED", "WRONG", "CORRECT")[lengths[0] % 3]
    elif "YES or NO" in prompt:
        value = "YES" if lengths[0] % 2 else "NO"
    else:
        value = str(min(10, 1 + lengths[0] // 3))
    return f"By length.\nVerdict {code[-1]}: {value}"


class _HTTPServer(ThreadingHTTPServer):
    """With room for connections that come at once. Where five wait, as is the default, the next one is dropped and comes
    again a second later: a step would wait for that, and not for the judge."""

    request_queue_size = 128
    daemon_threads = True


class RuleServer:
    """Use as a context manager.

    Args:
        answer: to the body of a request and its number, from 0.

    Attributes:
        asked: bodies of all requests, in order.
        times: when they came (seconds).
        most: of them at once.
    """

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer] | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.most = self._now = 0
        self._answer = answer or (lambda body, _: completion(by_length(body["messages"][0]["content"])))
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, headers, data = outer._take(self.path, self.headers.get("authorization"), body)
                try:
                    self.send_response(status)
                    for name, value in {"content-length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    return  # the client has gone

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = _HTTPServer(("127.0.0.1", 0), Handler)

    def _take(self, path: str, key: str | None, body: dict[str, Any]) -> Answer:
        if path != "/v1/chat/completions":
            return 404, {}, b"no such path"
        with self._lock:
            number = len(self.asked)
            self.asked.append(body)
            self.keys.append(key)
            self.times.append(time.monotonic())
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self._answer(body, number)
        finally:
            with self._lock:
                self._now -= 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> RuleServer:
        threading.Thread(target=self._server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
