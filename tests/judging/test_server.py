"""The client of a judge's server, against a real one: what is tried again, what ends the run, the rate, the cache."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.judge import JudgeConfig
from megatron_ring.errors import UserError
from megatron_ring.judging.cache import ReplyCache
from megatron_ring.judging.client import Pace, Server
from megatron_ring.judging.server import ServerJudge
from megatron_ring.judging.verdict import Reply
from tests.judging.rule_server import Answer, RuleServer, completion

SOON = (0.01, 0.01, 0.01)


def client(url: str, folder: Path, **more: Any) -> ServerJudge:
    server = Server(url, "rule", 0.0, 64, **more)
    return ServerJudge(server, ReplyCache(folder, server.identity()), SOON)


def echo(body: dict[str, Any], number: int) -> Answer:
    return completion(body["messages"][0]["content"].upper())


def test_replies_come_in_order_and_are_never_asked_for_twice(tmp_path: Path) -> None:
    prompts = [f"p{place % 40}" for place in range(60)]
    with RuleServer(lambda body, number: (time.sleep(0.01), echo(body, number))[1]) as server:
        first = client(server.url, tmp_path, key="k", concurrency=4)(prompts)
        assert [reply.text for reply in first] == [prompt.upper() for prompt in prompts]
        assert len(server.asked) == 40 and 1 < server.most <= 4 and set(server.keys) == {"Bearer k"}
        body = {
            "model": "rule",
            "messages": [{"role": "user", "content": "p7"}],
            "n": 1,
            "temperature": 0.0,
            "max_tokens": 64,
        }
        assert body in server.asked
        assert client(server.url, tmp_path)(prompts) == first and len(server.asked) == 40
        # Files that a kill or a full disk has broken are asked for again; another judge's replies are not taken.
        paths = sorted(tmp_path.rglob("*.json"))
        paths[0].write_text("")
        paths[1].write_text('{"key": "x", "text": "HACKED", "finish": "stop", "opened": false}')
        paths[2].write_text("[]")
        assert client(server.url, tmp_path)(prompts) == first and len(server.asked) == 43
        other = ServerJudge(Server(server.url, "rule", 0.5, 64), ReplyCache(tmp_path, {"temperature": 0.5}), SOON)
        assert len(other(prompts[:1])) == 1 and len(server.asked) == 44


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
def test_a_busy_server_is_tried_again(status: int, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        return (status, {"retry-after": "0"}, b"busy") if number < 2 else echo(body, number)

    with RuleServer(answer) as server:
        assert client(server.url, tmp_path)(["a"])[0].text == "A"
        assert len(server.asked) == 3


def test_broken_replies_are_tried_again(tmp_path: Path) -> None:
    """Cut off, not JSON, of another form."""
    broken: list[Answer] = [
        (200, {"content-length": "1000"}, b'{"choices": ['), (200, {}, b"<html>"), (200, {}, b'{"choices": []}'),
    ]  # fmt: skip
    with RuleServer(lambda body, number: broken[number] if number < 3 else echo(body, number)) as server:
        assert client(server.url, tmp_path, timeout=2.0)(["a"])[0].text == "A"


def test_waits_as_long_as_the_server_says(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        return (429, {"retry-after": "1"}, b"") if number == 0 else echo(body, number)

    with RuleServer(answer) as server:
        client(server.url, tmp_path)(["a"])
        assert server.times[1] - server.times[0] >= 1.0


def test_a_server_that_wants_the_other_name_of_the_limit(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        if "max_tokens" in body:
            return 400, {}, b"unsupported: 'max_tokens', use 'max_completion_tokens' instead"
        return echo(body, number)

    with RuleServer(answer) as server:
        judge = client(server.url, tmp_path, concurrency=1)
        judge.check()
        assert [reply.text for reply in judge(["a", "b"])] == ["A", "B"]
        assert [body.get("max_completion_tokens") for body in server.asked] == [None, 16, 64, 64]


def test_one_request_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    """Too long for the model, or more than the server can do: a problem of that one, which is not kept."""

    def answer(body: dict[str, Any], number: int) -> Answer:
        text = body["messages"][0]["content"]
        if text == "long":
            return 400, {}, b'{"error": {"message": "context\nlength"}}'
        return (500, {}, b"no") if text == "poison" else echo(body, number)

    with RuleServer(answer) as server:
        found = client(server.url, tmp_path)(["a", "long", "poison", "b"])
        assert [reply.text for reply in found] == ["A", "", "", "B"]
        assert found[1].problem == 'the judge\'s server: status 400: {"error": {"message": "context length"}}'
        assert found[2].problem == "the judge's server: status 500: no"
        assert len([body for body in server.asked if body["messages"][0]["content"] == "poison"]) == 1 + len(SOON)
        assert len(list(tmp_path.rglob("*.json"))) == 2


@pytest.mark.parametrize(
    ("content", "finish", "text", "said"),
    [
        ("a", "length", "a", "length"),
        ("a", "eos_token", "a", "stop"),
        (None, "stop", "", "stop"),
        ([{"type": "text"}], "stop", "", "stop"),
        ("a", None, "a", ""),
    ],
)
def test_odd_completions(content: Any, finish: Any, text: str, said: str, tmp_path: Path) -> None:
    with RuleServer(lambda body, number: completion(content, finish)) as server:
        assert client(server.url, tmp_path)(["p"]) == [Reply(text, said)]


def test_what_ends_the_run(tmp_path: Path) -> None:
    """A wrong address, key or model: one line that names the flag, before and while judging."""

    def refuses(status: int) -> Callable[[dict[str, Any], int], Answer]:
        return lambda body, number: (status, {}, b"wrong")

    for status in (401, 403, 404):
        with RuleServer(refuses(status)) as server:
            for ask in (lambda judge: judge.check(), lambda judge: judge([f"p{i}" for i in range(50)])):
                with pytest.raises(
                    UserError, match=rf"^--judge.url http://.*: status {status}: wrong: check the address up to /v1"
                ):
                    ask(client(server.url, tmp_path))
            assert len(server.asked) < 40
    with RuleServer() as server, pytest.raises(UserError, match="404"):
        client(server.url + "/v1", tmp_path).check()
    with RuleServer(refuses(400)) as server, pytest.raises(UserError, match="status 400"):
        client(server.url, tmp_path).check()
    with RuleServer(refuses(503)) as server:
        client(server.url, tmp_path).check()  # busy now: not a mistake
    with socket.socket() as deaf:  # it keeps the port, and does not listen
        deaf.bind(("127.0.0.1", 0))
        for ask in (lambda judge: judge.check(), lambda judge: judge(["p"])):
            with pytest.raises(UserError, match="Connection refused"):
                ask(client(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", tmp_path))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_told_and_gets_no_key(status: int, tmp_path: Path) -> None:
    with (
        RuleServer() as other,
        RuleServer(lambda *_: (status, {"location": f"{other.url}/chat/completions"}, b"")) as server,
    ):
        for ask in (lambda judge: judge.check(), lambda judge: judge(["p"])):
            with pytest.raises(UserError, match=rf"^--judge.url http://.*: status {status}"):
                ask(client(server.url, tmp_path, key="secret"))
        assert not other.asked and len(server.asked) == 2


def test_a_server_that_says_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="timed out"):
        client(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", tmp_path, timeout=0.05)(["p"])


@pytest.mark.parametrize(
    "url", ["ftp://a", "a", "http://", "file:///etc/passwd", "http://a:b/v1", "http://u:secret@a/v1", "http://[a/v1", ""]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UserError, match=r"^--judge\.url is no address of a server: give http") as error:
        JudgeConfig(url=url, model="m")
    assert "secret" not in str(error.value)


def test_the_rate_is_kept_by_all_threads_together() -> None:
    pace, times = Pace(1200.0), []
    lock = threading.Lock()

    def work() -> None:
        for _ in range(4):
            pace.wait()
            with lock:
                times.append(time.monotonic())

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    assert len(times) == 20 and times[-1] - times[0] >= 19 * 0.05 - 0.02


def test_the_cache_keeps_thinking_and_no_problem(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path, {"model": "m"})
    cache.keep("p", Reply("<think>\ud83d\n", "length", opened=True))
    assert cache.find("p") == Reply("<think>\ud83d\n", "length", opened=True) and cache.find("q") is None
    cache.keep("q", Reply("", "", problem="busy"))
    assert cache.find("q") is None and len(list(tmp_path.rglob("*.json"))) == 1
    assert ReplyCache(tmp_path, {"model": "n"}).find("p") is None
    (path,) = tmp_path.rglob("*.json")
    assert json.loads(path.read_text())["key"] == path.stem
