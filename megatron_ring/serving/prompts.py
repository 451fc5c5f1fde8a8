"""What a client writes to tokens, in the form of the model's chat template."""

from __future__ import annotations

import re

from megatron_ring.data.messages import RecordError, read_messages
from megatron_ring.data.records import with_tools
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
    try:
        messages, _ = read_messages(ask.messages, "messages", last="user")
        return tokenizer.prompt_tokens(with_tools(messages, ask.tools), instruction, ask.template_kwargs)
    except (RecordError, UserError) as error:
        raise bad(str(error), "messages") from None


def begins_inside_thinking(prompt: list[int], tokenizer: RingTokenizer) -> bool:
    """Whether the template has opened `<think>`, so that the answer goes on inside it."""
    return re.search(rf"{THINK}\s*\Z", tokenizer.decode(prompt[-16:], skip_special=False)) is not None
