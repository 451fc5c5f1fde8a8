"""What a client writes to tokens, in the form of the model's chat template."""

from __future__ import annotations

import json
import re
from typing import Any

from megatron_ring.data.messages import RecordError, read_messages, read_prompt
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.data.turns import THINK
from megatron_ring.errors import UserError
from megatron_ring.serving.failures import bad
from megatron_ring.serving.protocol import ChatAsk


def tokens_of_text(prompt: str | list[int], tokenizer: RingTokenizer) -> list[int]:
    """A prompt of /v1/completions: text is not framed, and token ids are taken as they are. Raises `ApiError`."""
    tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not tokens:
        raise bad("prompt is empty: send one token at least", "prompt")
    return tokens


def tokens_of_chat(ask: ChatAsk, tokenizer: RingTokenizer, instruction: str | None) -> list[int]:
    """Raises `ApiError`."""
    calls = any(isinstance(message, dict) and message.get("tool_calls") for message in ask.messages)
    try:
        if not (ask.tools or calls or ask.template_kwargs):
            messages = read_prompt(ask.messages)
            return tokenizer.prompt_tokens(messages, instruction)
        conversation = _conversation(ask.messages, instruction)
        return tokenizer.conversation_tokens(conversation, ask.tools, ask.template_kwargs)
    except (RecordError, UserError) as error:
        raise bad(str(error).replace("'prompt'", "'messages'"), "messages") from None


def begins_inside_thinking(prompt: list[int], tokenizer: RingTokenizer) -> bool:
    """Whether the template has opened `<think>`, so that the answer goes on inside it."""
    return re.search(rf"{THINK}\s*\Z", tokenizer.decode(prompt[-16:], skip_special=False)) is not None


def _conversation(messages: list[Any], instruction: str | None) -> list[dict[str, Any]]:
    """Messages for a template, calls of tools with their arguments as objects. Raises `RecordError`, `ApiError`."""
    plain, calls = [], []
    for place, message in enumerate(messages):
        called: list[dict[str, Any]] = []
        if isinstance(message, dict) and message.get("tool_calls"):
            if message.get("role") != "assistant":
                raise bad(f"message {place} has tool_calls, but it is not the assistant's", "messages")
            called = _calls(message["tool_calls"], place)
            message = {name: value for name, value in message.items() if name != "tool_calls"}
            message["content"] = message.get("content") or "."  # it may have no text of its own
        plain.append(message)
        calls.append(called)
    read, _ = read_messages(plain, "messages", last="user")
    found: list[dict[str, Any]] = []
    for message, one, called in zip(messages, read, calls, strict=True):
        content = one.content
        if called:
            content = content if message.get("content") else content.removesuffix(".")
        elif one.role == "user" and instruction is not None:
            content = f"{content}\n{instruction}"
        found.append({"role": one.role, "content": content} | ({"tool_calls": called} if called else {}))
    return found


def _calls(value: Any, place: int) -> list[dict[str, Any]]:
    found = []
    for call in value if isinstance(value, list) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad(f"message {place}: each of its tool_calls is {{id, type, function: {{name, arguments}}}}", "messages")
        arguments = function.get("arguments", "{}")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise bad(f"message {place}: the arguments of a call are not JSON", "messages") from None
        if not isinstance(arguments, dict):
            raise bad(f"message {place}: the arguments of a call are not an object", "messages")
        found.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return found
