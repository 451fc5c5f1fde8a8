"""Solve rates from responses: of an evaluation, and of a server that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from megatron_ring.curation.solve_rates import solve_rate
from megatron_ring.errors import run_main
from tests.curation.conftest import read_jsonl, write_jsonl
from tools import solve_rate as tool

PROMPTS = [{"id": str(n), "domain": "math", "prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(4)]


def sample(answer: str | None, reward: float, **more: Any) -> dict[str, Any]:
    return {"response": "no box" if answer is None else f"\\boxed{{{answer}}}", "reward": reward, **more}


def test_of_one_problem() -> None:
    found = solve_rate(
        [sample("1/2", 1, tokens=10), sample("0.5", 1, tokens=20), sample("3", 0, finish_reason="length"), sample(None, 0)]
    )
    assert (found.rate, found.majority_share, found.majority_agrees, found.mean_tokens, found.truncated) == (
        0.5,
        0.5,
        True,
        15,
        0.25,
    )
    assert found.verdict is None and found.metadata()["difficulty"] == 0.5


@pytest.mark.parametrize(
    ("samples", "verdict"),
    [
        ([sample("4", 1)] * 3, "always"),
        ([sample("4", 0), sample("5", 0), sample("6", 0)], "never"),
        ([sample("4", 0), sample("4.0", 0), sample("6", 0)], "contradicted"),
        ([sample(None, 0)] * 3, "never"),
        ([sample("4", 0), sample("4", 0), sample("6", 1)], None),
    ],
)
def test_verdicts(samples: list[dict[str, Any]], verdict: str | None) -> None:
    assert solve_rate(samples).verdict == verdict == solve_rate(samples[::-1]).verdict


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["solve_rate.py", *arguments])
    try:
        run_main(tool.main)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_from_an_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    answers = {"0": ("0", "0"), "1": ("2", "3"), "2": ("5", "5"), "3": ("1", "2")}
    rows = [
        {"id": name, "domain": "math", "sample": n, "tokens": 5, **sample(given, float(given == str(2 * int(name))))}
        for name, texts in answers.items()
        for n, given in enumerate(texts)
    ]
    rows.insert(0, {**rows[0], "reward": 0.0, "detail": {"machine_failure": "its worker was killed"}})  # no verdict
    rows.insert(3, {**rows[1], "reward": 0.0, "detail": {"judge_failure": "no reply"}})
    samples = write_jsonl(tmp_path / "s.jsonl", rows)
    flags = ("--prompts", str(prompts), "--out", str(tmp_path / "o"), "--responses", str(samples))
    assert call(monkeypatch, *flags, "--drop", "always", "contradicted") == 0
    kept = read_jsonl(tmp_path / "o" / "kept.jsonl")
    assert [(row["id"], row["metadata"]["solve_rate"]) for row in kept] == [("1", 0.5), ("3", 0.0)]
    ledger = {entry["id"]: (entry["reason"], entry["evidence"]) for entry in read_jsonl(tmp_path / "o" / "ledger.jsonl")}
    assert ledger == {"0": ("always", "2 of 2 responses are right; 100% answer '0'"),
                      "2": ("contradicted", "0 of 2 responses are right; 100% answer '5'")}  # fmt: skip
    write_jsonl(tmp_path / "s.jsonl", rows[:-2])
    assert call(monkeypatch, *flags) == 2 and "no response to '3'" in capsys.readouterr().err
    assert call(monkeypatch, *flags[:4]) == 2 and "give one of --responses" in capsys.readouterr().err


class Handler(BaseHTTPRequestHandler):
    """Adds two numbers, wrongly for odd seeds; fails once with status 503."""

    asked: ClassVar[list[dict[str, Any]]] = []
    failures = 1
    calls: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] != "m":
            return self.reply(404, {"error": "no such model"})
        if Handler.failures:
            Handler.failures -= 1
            return self.reply(503, {"error": "busy"})
        Handler.asked.append(body)
        number = int(body["messages"][-1]["content"].split()[2])
        message = {"content": f"\\boxed{{{2 * number + body['seed'] % 2}}}"}
        if Handler.calls:
            message = {"content": None, "tool_calls": Handler.calls}
        choice = {"message": message, "finish_reason": "stop"}
        return self.reply(200, {"choices": [choice], "usage": {"completion_tokens": 7}})

    def reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked, Handler.failures = [], 1
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/v1"
        http.shutdown()
        thread.join()


def test_from_a_server(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    flags = ("--prompts", str(prompts), "--out", str(tmp_path / "o"), "--url", server, "--samples", "4")
    assert call(monkeypatch, *flags, "--model", "m") == 0
    assert [row["metadata"]["solve_rate"] for row in read_jsonl(tmp_path / "o" / "kept.jsonl")] == [0.5] * 4
    assert len(Handler.asked) == 16
    # A killed run: the last line is half written. Only that one is asked for again.
    path = tmp_path / "o" / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    assert call(monkeypatch, *flags, "--model", "m") == 0 and len(Handler.asked) == 17
    assert len(read_jsonl(path)) == 16
    other = ("--prompts", str(prompts), "--out", str(tmp_path / "x"), "--url", server)
    assert call(monkeypatch, *other, "--model", "n") == 2
    assert "status 404" in capsys.readouterr().err
    # Responses of another model, or to other problems, are not taken for these.
    again = (*flags, "--model", "m")
    assert call(monkeypatch, *flags, "--model", "n") == 2 and "another model" in capsys.readouterr().err
    assert call(monkeypatch, *again, "--temperature", "0.5") == 2 and "another temperature" in capsys.readouterr().err
    write_jsonl(tmp_path / "p.jsonl", [{**row, "prompt": f"{row['prompt']} "} for row in PROMPTS])
    assert call(monkeypatch, *again) == 2 and "another prompts" in capsys.readouterr().err


def test_tools_and_other_columns_come_through(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The server is told what may be called and what was called before; its calls are scored as a model writes them."""
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    wanted = {"name": "add", "arguments": {"a": 1, "b": "é"}}
    before = {"type": "function", "function": {"name": "add", "arguments": {"a": 0}}}
    chat = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": [before]},
            {"role": "tool", "content": "0"}, {"role": "user", "content": "What is 1 + é?"}]  # fmt: skip
    row = {"id": "a", "domain": "tool-calls", "prompt": chat, "answer": {"calls": [wanted]}, "tools": tools,
           "metadata": {"source": "s"}, "solutions": [{"text": "x", "language": None}]}  # fmt: skip
    prompts = write_jsonl(tmp_path / "p.jsonl", [row])
    flags = ("--prompts", str(prompts), "--out", str(tmp_path / "o"), "--url", server, "--samples", "1", "--model", "m")
    monkeypatch.setattr(Handler, "calls", [{"function": {"name": "add", "arguments": json.dumps(wanted["arguments"])}}])
    assert call(monkeypatch, *flags, "--instruction", "") == 0
    (kept,) = read_jsonl(tmp_path / "o" / "kept.jsonl")
    assert kept["metadata"]["solve_rate"] == 1 and {**kept, "metadata": row["metadata"]} == row
    (asked,) = Handler.asked
    assert asked["tools"] == tools
    assert asked["messages"][1]["tool_calls"] == [
        {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": '{"a": 0}'}}
    ]
    assert asked["messages"][2]["tool_call_id"] == "call00001"


def test_other_weights_or_flags_are_sampled_anew(tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    options = tool.RateOptions(prompts=prompts, out=tmp_path / "o")
    weights = [tmp_path / "a", tmp_path / "b"]
    for folder in weights:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"name": folder.name}))
    flags = ["--checkpoint", str(weights[0]), "--seed", "1"]
    found = tool.sampling_digest(options, flags)
    assert found == tool.sampling_digest(options, list(flags))
    others = [
        tool.sampling_digest(options, [*flags[:3], "2"]),
        tool.sampling_digest(options, [f"--checkpoint={weights[1]}"]),
    ]
    (weights[0] / "config.json").write_text("{}")  # other weights under the same name
    assert len({found, *others, tool.sampling_digest(options, flags)}) == 4
