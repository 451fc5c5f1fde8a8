"""The text of a completion as scorers and judges read it: without special tokens, its thinking marked."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ring.benchmarks.thinking import CLOSE, OPEN
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.sampler.completion import Completion


def opens_thinking(tokenizer: RingTokenizer, prompt: Sequence[int]) -> bool:
    """Whether the prompt's tokens end where the thinking has begun."""
    return tokenizer.decode(prompt[-16:], skip_special=False).rstrip().endswith(OPEN)


def response_text(tokenizer: RingTokenizer, completion: Completion) -> str:
    """The response without its special tokens, but with the end of the thinking where that is one."""
    decode, tokens = tokenizer.decode, list(completion.tokens)
    text = decode(tokens)
    if CLOSE in text or CLOSE not in decode(tokens, skip_special=False):
        return text
    places = [place for place, token in enumerate(tokens) if decode([token], skip_special=False).strip() == CLOSE]
    if not places:
        return text
    return f"{decode(tokens[: places[-1]])}{CLOSE}{decode(tokens[places[-1] + 1 :])}"
