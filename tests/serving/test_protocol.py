"""What is read of a body, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.serving.failures import ApiError
from megatron_ring.serving.protocol import read_chat, read_completion, read_json

USUAL = SamplingConfig(top_p=0.9, stop_strings=("X",))
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_a_completion() -> None:
    ask = read_completion(
        {"model": "m", "prompt": [[1, 2], "a"], "n": 2, "seed": -1, "stop": "b", "temperature": 0, "top_k": -1, "min_p": 0.1,
         "logprobs": 0, "echo": True, "max_tokens": 0, "stream": True, "stream_options": {"include_usage": True},
         "best_of": 1, "user": "u", "logit_bias": {}, "frequency_penalty": 0.0, "suffix": None}, USUAL
    )  # fmt: skip
    assert (ask.prompts, ask.n, ask.seed, ask.max_tokens, ask.top_logprobs) == ([[1, 2], "a"], 2, -1, 0, 0)
    assert ask.echo and ask.stream and ask.usage and ask.sampling.greedy and ask.sampling.top_p == 0.9
    assert ask.sampling.stop_strings == ("X", "b") and ask.sampling.top_k == 0
    assert read_completion({"prompt": [5, 6]}, USUAL).prompts == [[5, 6]]
    assert read_completion({"prompt": "a"}, USUAL).max_tokens == 16


def test_a_chat() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    ask = read_chat(CHAT | {"max_completion_tokens": 7, "logprobs": True, "top_logprobs": 3, "tools": [tool]}, USUAL)
    assert (ask.max_tokens, ask.top_logprobs, ask.tools) == (7, 3, [tool])
    assert read_chat(CHAT | {"tools": [tool], "tool_choice": "none"}, USUAL).tools == []
    assert read_chat(CHAT | {"logprobs": False, "top_logprobs": 0, "response_format": {"type": "text"}}, USUAL)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temprature": 1}, "did you mean temperature"), ({"n": 0}, "n is 0"), ({"n": 1.5}, "n is a number"),
    ({"n": True}, "n is"),
    ({"temperature": "hot"}, "temperature"), ({"temperature": -1}, "temperature is -1"), ({"top_p": 0}, "top_p is 0"),
    ({"min_p": 2}, "min_p is 2"), ({"top_k": -2}, "top_k"), ({"stop": [1]}, "stop"), ({"stop": {}}, "stop"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids"), ({"stop_token_ids": [10**12]}, "stop_token_ids"), ({"seed": "x"}, "seed"),
    ({"best_of": 2}, "best_of"), ({"logit_bias": {"5": 1}}, "logit_bias"), ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"repetition_penalty": 1.2}, "repetition_penalty"), ({"stream": "yes"}, "stream"),
    ({"stream_options": 1}, "stream_options"),
    ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 10**400}, "max_tokens"), ({"temperature": 10**400}, "temperature"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"ignore_eos": True}, "ignore_eos"),
    ({"suffix": "x"}, "suffix"), ({"stop": ["a"] * 65}, "stop has 65"), ({"stop": "a" * 1001}, "stop"),
]  # fmt: skip
WRONG_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt is null"), ({"prompt": []}, "prompt"), ({"prompt": [True]}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": [[1], 2]}, "prompt"), ({"logprobs": 21}, "logprobs is 21"), ({"logprobs": True}, "logprobs"),
    ({"messages": []}, "messages"), ({"prompt_logprobs": 1}, "echo"), ({"echo": 1}, "echo"),
]  # fmt: skip
WRONG_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": "hi"}, "messages is text"), ({"messages": []}, "messages"), ({"top_logprobs": 3}, "logprobs"),
    ({"logprobs": 3}, "logprobs"), ({"logprobs": True, "top_logprobs": 30}, "top_logprobs"), ({"tools": {}}, "tools"),
    ({"tools": [{}]}, "tools"), ({"tool_choice": "required"}, "tool_choice"), ({"tool_choice": "auto"}, "tools"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "differ"), ({"max_tokens": 0}, "max_tokens"), ({"echo": True}, "echo"),
    ({"chat_template_kwargs": {"tokenize": True}}, "tokenize"), ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "said"), [*WRONG, *WRONG_COMPLETION], ids=str)
def test_wrong_completions(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError, match=said) as error:
        read_completion({"prompt": "a"} | more, USUAL)
    assert error.value.status == 400 and len(str(error.value)) < 200


@pytest.mark.parametrize(("more", "said"), [*WRONG, *WRONG_CHAT], ids=str)
def test_wrong_chats(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError, match=said) as error:
        read_chat(CHAT | more, USUAL)
    assert error.value.status == 400 and len(str(error.value)) < 200


@given(st.binary(max_size=40) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(
    lambda value: str(value).encode(errors="surrogatepass")))  # fmt: skip
def test_any_bytes(body: bytes) -> None:
    try:
        read_json(body)
    except ApiError as error:
        assert error.status == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"NaN", b'{"a": Infinity}', b'{"a": "\\ud800"}', b"[" * 10**5,
                                  b'{"a":' * 10**5, b'{"a": 1' + b"0" * 5000 + b"}"])  # fmt: skip
def test_bodies_that_are_no_objects(body: bytes) -> None:
    with pytest.raises(ApiError):
        read_json(body)
