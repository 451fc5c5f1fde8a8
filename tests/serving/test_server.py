"""A real server and real clients: what comes back is what the sampler gives in this process."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from megatron_ring.config.sampling import SamplingConfig
from tests.serving.conftest import Served, launch


def direct(model: list[str], asked: list[Any]) -> tuple[list[Any], list[list[float | None]]]:
    """Completions of the sampler in this process, and the log-probabilities of all tokens by full forward passes."""
    import torch

    from megatron_ring.config.generate import GenerateConfig
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages
    from megatron_ring.run.stage import open_model, resolve_shape
    from megatron_ring.sampler.sampler import Sampler

    config = GenerateConfig(checkpoint=Path(model[1]), tokenizer=Path(model[3]))
    stage = open_model(config, resolve_shape(None, config.checkpoint), config.checkpoint)
    stage.model.eval()
    done = Sampler(stage.model, stage.context, SamplingConfig(kv_tokens=4096), 0).generate(asked)
    scores = []
    for request, one in zip(asked, done, strict=True):
        whole = torch.tensor([*request.prompt_tokens, *one.tokens])
        layout = PackedLayout(torch.arange(len(whole)), [len(whole)])
        logits = forward_all_stages(stage.model, whole, layout)
        assert logits is not None
        logprobs = logits.double().log_softmax(-1)[:-1].gather(1, whole[1:, None])[:, 0]
        scores.append([None, *logprobs.tolist()])
    return done, scores


@pytest.mark.slow
@pytest.mark.distributed
def test_answers_are_those_of_the_sampler(served: Served, model: list[str], run_on: Any) -> None:
    """Text, token ids, log-probabilities of an echoed prompt and of what follows; several prompts and choices at once."""
    from megatron_ring.sampler.requests import GenerationRequest, request_seed

    prompts = [[5, 9, 30, 31, 7], [40], [5, 9, 30, 31, 7, 8, 8, 8, 200, 12]]
    body = {"prompt": prompts, "max_tokens": 6, "n": 2, "seed": 4, "temperature": 1, "echo": True, "logprobs": 2,
            "return_token_ids": True}  # fmt: skip
    status, answer = served.post("/v1/completions", body)
    assert status == 200, answer
    asked = [GenerationRequest(prompt, request_seed(4, n), 6) for prompt in prompts for n in range(2)]
    ((done, scores),) = run_on(1, direct, model, asked)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    for choice, request, one, wanted in zip(answer["choices"], asked, done, scores, strict=True):
        assert choice["prompt_token_ids"] == request.prompt_tokens and choice["token_ids"] == list(one.tokens)
        found = choice["logprobs"]
        assert len(found["tokens"]) == len(found["top_logprobs"]) == len(found["text_offset"]) == len(wanted)
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        assert found["token_logprobs"][1:] == pytest.approx(wanted[1:], abs=1e-5)
    assert answer["usage"] == {"prompt_tokens": 16, "completion_tokens": sum(len(one.tokens) for one in done),
                               "total_tokens": 16 + sum(len(one.tokens) for one in done)}  # fmt: skip
    # What an evaluation harness sends for log-likelihoods: greedy flags compare the numbers themselves.
    body = {"prompt": prompts, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    for choice in served.post("/v1/completions", body)[1]["choices"]:
        found = choice["logprobs"]
        assert found["token_logprobs"][-1] == max(found["top_logprobs"][-1].values())
    # Log-probabilities alone, without the likeliest tokens: the same tokens, the same numbers.
    body = {"prompt": prompts[0], "max_tokens": 6, "n": 2, "seed": 4, "temperature": 1, "logprobs": 0}
    again = served.post("/v1/completions", body)[1]["choices"][1]["logprobs"]["token_logprobs"]
    assert again == pytest.approx(scores[1][5:], abs=1e-5)


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.address}/v1", api_key="any", max_retries=0)


def test_the_client_of_openai(client: openai.OpenAI) -> None:
    assert client.models.list().data[0].id == "tiny"
    messages: Any = [{"role": "user", "content": "1 + 1 = ?"}]
    settings: Any = {"model": "tiny", "messages": messages, "max_tokens": 12, "seed": 5, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**settings, n=2)
    parts: dict[int, str] = {0: "", 1: ""}
    logprobs: dict[int, list[float]] = {0: [], 1: []}
    reasons, usage = {}, None
    for chunk in client.chat.completions.create(**settings, n=2, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
            logprobs[choice.index] += [one.logprob for one in (choice.logprobs.content or [])] if choice.logprobs else []
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert usage == whole.usage and usage is not None
    for choice in whole.choices:
        assert parts[choice.index] == choice.message.content and reasons[choice.index] == choice.finish_reason
        assert choice.logprobs and choice.logprobs.content
        assert logprobs[choice.index] == pytest.approx([one.logprob for one in choice.logprobs.content], abs=1e-5)
        assert all(len(one.top_logprobs) == 2 for one in choice.logprobs.content)
    text = client.completions.create(model="tiny", prompt="1 + 1", max_tokens=12, seed=5, stop=["a", "e"])
    assert not {"a", "e"} & set(text.choices[0].text)
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.completions.create(model="other", prompt="1")
    with pytest.raises(openai.BadRequestError, match="context is 1024 tokens") as error:
        client.completions.create(model="tiny", prompt="1", max_tokens=5000)
    assert error.value.code == "context_length_exceeded"


def test_tools_and_thinking_in_the_template(served: Served) -> None:
    """What the model sees; what it says is random here, and its parts are tested by themselves."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "2"}]  # fmt: skip
    body = {"messages": messages, "tools": [tool], "chat_template_kwargs": {"thinks": True}}
    status, found = served.post("/tokenize", body)
    assert status == 200, found
    text = served.post("/detokenize", {"tokens": found["tokens"]})[1]["prompt"]
    assert text.startswith('<role>SYSTEM</role>Tools: [{"type": "function"') and text.endswith("<think>\n")
    assert '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><role>tool</role>2' in text
    answer = served.post("/v1/chat/completions", body | {"max_tokens": 5, "return_token_ids": True})[1]
    message = answer["choices"][0]["message"]
    assert answer["prompt_token_ids"] == found["tokens"] and len(answer["choices"][0]["token_ids"]) > 0
    assert message["content"] == "" and message["reasoning"] == message["reasoning_content"]  # it has not ended thinking
    broken = [messages[0], {**messages[1], "tool_calls": [{"function": {"name": "add", "arguments": "{"}}]}, messages[2]]
    assert "not JSON" in served.post("/v1/chat/completions", {"messages": broken})[1]["error"]["message"]


def test_curl_and_the_page(served: Served) -> None:
    body = json.dumps({"prompt": "1", "max_tokens": 3, "stream": True})
    done = subprocess.run(["curl", "-sN", f"{served.address}/v1/completions", "-d", body], capture_output=True, text=True)
    events = done.stdout.split("\n\n")
    assert (
        events[-2:] == ["data: [DONE]", ""] and json.loads(events[0].removeprefix("data: "))["object"] == "text_completion"
    )
    page = served.get("/")[1]
    assert "<script>" in page and "v1/chat/completions" in page and "http://" not in page and "https://" not in page
    status, text = served.get("/metrics")
    assert status == 200 and 'ring_requests_total{path="/v1/completions",status="200"}' in text
    assert served.get("/tokenizer_info")[1]["eos_token"] == "<|endoftext|>"


def test_hostile_requests(served: Served) -> None:
    """All are told what is wrong; the server goes on."""
    hi = {"role": "user", "content": "hi"}
    wrong: list[tuple[str, Any]] = [("/v1/completions", body) for body in (
        b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b"[" * 100_000, {},
        {"prompt": ""},
        {"prompt": [[]]}, {"prompt": [-1]}, {"prompt": [10**30]}, {"prompt": [324_000]}, {"prompt": [1] * 2000},
        {"prompt": "a", "max_tokens": 10**9}, {"prompt": "a", "n": 129}, {"prompt": ["a"] * 600}, {"prompt": {"a": 1}},
        {"prompt": "a", "stop_token_ids": [99_999]}, {"prompt": "a", "temperature": 1e-9}, {"prompt": "a", "model": [1]},
        {"prompt": "a", "x": "\x00"}, {"prompt": "a", "seed": 10**40},
    )]  # fmt: skip
    wrong += [("/v1/chat/completions", {"messages": messages}) for messages in (
        None, [], {}, [1], [None], [{}], [{"role": "user"}], [{"role": "user", "content": ""}],
        [{"role": "x", "content": "a"}],
        [{"role": "user", "content": 5}], [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        [{"role": "assistant", "content": "a"}], [hi, {"role": "assistant", "content": "a"}],
        [{"role": ["user"], "content": "a"}],
        [{"role": "user", "content": "a<|endoftext|>b"}], [hi, {"role": "assistant", "tool_calls": 5}, hi],
        [hi, {"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}, hi],
        [{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}], [hi] * 400,
    )]  # fmt: skip
    wrong += [("/v1/chat/completions", {"messages": [hi]} | more) for more in (
        {"tools": [1]}, {"tools": "f"}, {"tools": [{"type": "function", "function": {"name": "<|endoftext|>"}}]},
        {"chat_template_kwargs": {"a b": 1}}, {"n": "2"}, {"stream": 1}, {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": -1},
    )]  # fmt: skip
    wrong += [("/tokenize", {}), ("/tokenize", {"prompt": 5}), ("/tokenize", {"messages": 1}),
    ("/detokenize", {"tokens": "a"}),
              ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": [2**70]}), ("/detokenize", {}), ("/nothing", {}),
              ("/health", {}), ("/v1/models", {})]  # fmt: skip
    assert len(wrong) >= 60
    for path, body in wrong:
        status, answer = served.post(path, body)
        assert 400 <= status < 500 and answer["error"]["message"], (path, str(body)[:200], status, answer)
    for size in (2**20, 2**25):  # the second is more than any socket holds: who refuses it early must not cut the sender off
        assert served.post("/v1/completions", b'{"prompt": "' + b"a" * size + b'"}')[0] == 413
    assert served.post("/v1/completions", b"a" * 2**25, {"origin": "http://elsewhere"})[0] == 403
    for origin in ("http://elsewhere", "null", "http://[::", "\xff"):
        assert served.post("/v1/completions", {"prompt": "a"}, {"origin": origin})[0] == 403
    host, port = served.address.removeprefix("http://").split(":")
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
    stuck = [socket.create_connection((host, int(port)), timeout=30) for _ in range(50)]
    for raw in stuck:
        raw.sendall(head)  # they never say the rest
    for sent, said in (
        (b"\x00\xff\r\n\r\n", b"400"), (b"GET /" + b"a" * 100_000, b"400"),
        (head + b"Content-Length: -1\r\n\r\n", b"400"),
        (head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"400"),
        (b"\x16\x03\x01\x00\xa5" + b"\0" * 160, b"400"),
        (head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", b"400"), (head + b"Content-Length: 9999999\r\n\r\n", b"413"),
        (head + b"Content-Length: 100\r\n\r\n{", b"408"),  # this one is slow, and the next
        (head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"408"),
    ):  # fmt: skip
        with socket.create_connection((host, int(port)), timeout=30) as raw:
            raw.sendall(sent)
            assert said in raw.recv(4096).split(b"\r\n")[0]
    assert served.post("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
    for raw in stuck:
        raw.close()


def hang_up(served: Served, body: dict[str, Any], after: float) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(data)}\r\n\r\n"
        raw.sendall(head.encode() + data)
        time.sleep(after)


@pytest.mark.slow
def test_many_clients_some_of_which_hang_up(served: Served) -> None:
    """Each gets what it gets alone; nothing is left of the others."""
    draw = random.Random(2)
    kinds: list[dict[str, Any]] = [
        {"prompt": [draw.randrange(4, 300) for _ in range(draw.choice([1, 4, 30]))], "max_tokens": draw.choice([1, 5, 20]),
         "temperature": draw.choice([0, 0.7, 1]), "top_p": draw.choice([0.5, 1]), "seed": place, "n": draw.choice([1, 2]),
         "return_token_ids": True, **draw.choice([{}, {"stop": ["a", "1"]}, {"logprobs": 1}, {"logprobs": 0, "echo": True}])}
        for place in range(12)
    ]  # fmt: skip
    alone = [[choice["token_ids"] for choice in served.post("/v1/completions", kind)[1]["choices"]] for kind in kinds]

    def ask(place: int) -> bool:
        kind = kinds[place % len(kinds)]
        if place % 3 == 2:
            hang_up(served, kind | {"max_tokens": 900, "stream": place % 2 == 0}, draw.random() / 5)
            return True
        status, answer = served.post("/v1/completions", kind)
        assert status == 200, answer
        return [choice["token_ids"] for choice in answer["choices"]] == alone[place % len(kinds)]

    with ThreadPoolExecutor(64) as clients:
        assert all(clients.map(ask, range(96)))
    until = time.monotonic() + 20
    while served.unfinished() and time.monotonic() < until:
        time.sleep(0.05)
    assert served.unfinished() == 0


@pytest.mark.slow
def test_a_full_queue_a_key_and_the_end(model: list[str]) -> None:
    """Beyond the queue 429; without the key 401; at the end what is under way finishes, and what is new gets 503."""
    small = ("--sampling.max-batch", "1", "--max-queue", "1", "--api-key", "schlüssel")
    served, key = launch(model, *small), {"authorization": "Bearer schlüssel".encode().decode("latin-1")}
    assert served.get("/v1/models")[0] == 401 and served.get("/v1/models", {"authorization": "Bearer s"})[0] == 401
    assert served.get("/v1/models", key)[0] == 200 and served.get("/health")[0] == 200
    long = {"prompt": "a", "max_tokens": 600, "n": 2, "return_token_ids": True, "seed": 1, "stop_token_ids": []}
    found: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: found.append(served.post("/v1/completions", long, key)))
    thread.start()
    metrics = ""
    while "ring_choices_unfinished 2" not in metrics:
        request = urllib.request.Request(served.address + "/metrics", headers=key)
        metrics = urllib.request.urlopen(request).read().decode()
    assert served.post("/v1/completions", {"prompt": "a"}, key)[0] == 429
    assert served.post("/v1/completions", {"prompt": "a", "n": 3}, key)[0] == 400  # it could never be taken
    served.process.terminate()
    until, status = time.monotonic() + 5, 0
    while status != 503 and time.monotonic() < until and thread.is_alive():
        status = served.post("/v1/completions", {"prompt": "a"}, key)[0]
        assert status in (429, 503)
    thread.join()
    assert status == 503 and found[0][0] == 200 and len(found[0][1]["choices"]) == 2
    _, errors = served.process.communicate(timeout=30)
    assert served.process.returncode == 0 and "Traceback" not in errors, errors


@pytest.mark.slow
def test_streams_that_end_with_the_server(model: list[str]) -> None:
    """One under way tells it in the stream. One that has had no event yet is refused like any other request."""
    served = launch(model, "--sampling.max-batch", "1", "--grace-seconds", "0.1")
    ask = {"prompt": "a", "max_tokens": 900, "seed": 1, "stop_token_ids": [], "stream": True}
    request = urllib.request.Request(served.address + "/v1/completions", json.dumps(ask).encode())
    with ThreadPoolExecutor(1) as clients, urllib.request.urlopen(request, timeout=60) as stream:
        assert stream.readline().startswith(b"data: ")
        waiting = clients.submit(served.post, "/v1/completions", ask)
        while served.unfinished() < 2:
            time.sleep(0.02)
        served.process.terminate()
        status, told = waiting.result()
        lines = stream.read().split(b"\n\n")
    assert status == 503 and told["error"]["message"] == "the server is stopping"
    assert json.loads(lines[-2].removeprefix(b"data: "))["error"]["message"] == "the server is stopping"
    _, errors = served.process.communicate(timeout=30)
    assert served.process.returncode == 0 and "Traceback" not in errors, errors
