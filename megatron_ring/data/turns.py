"""The turns of a conversation before a tokenizer takes them: which are trained, what an instruction adds, and how a response
goes on after a prompt that opens `<think>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from megatron_ring.data.records import Message, SFTRecord
from megatron_ring.errors import UserError

TrainOn = Literal["all", "last", "marked"]
THINK, END_OF_THINK = "<think>", "</think>"
# The instruction that the Ring-lite report puts into prompts.
BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def trained_messages(record: SFTRecord, train_on: TrainOn) -> list[bool]:
    """Of each message whether it is trained. Raises `UserError` where none is."""
    marks = record.marks or (None,) * len(record.messages)
    responses = [index for index, message in enumerate(record.messages) if message.role == "assistant"]
    if train_on == "marked":
        chosen = {index for index in responses if marks[index] is True}
    else:
        chosen = {index for index in responses if marks[index] is not False}
        chosen = chosen & {responses[-1]} if train_on == "last" else chosen
    if not chosen:
        which = {"all": "all are marked not to be", "last": "the last is marked not to be", "marked": "none is marked to be"}
        raise UserError(
            f"none of its messages is trained ({which[train_on]}): leave it out, or choose another --data.train-on"
        )
    return [index in chosen for index in range(len(record.messages))]


def after_prompt(prompt: str, response: str) -> str:
    """The response as it goes on after `prompt`, which may end inside `<think>`."""
    opened = re.search(rf"{THINK}\s*\Z", prompt)
    if opened is None:
        return response
    broken = "\n" in opened[0]  # the template has begun a line of thinking
    stripped = response.lstrip()
    if stripped.startswith(THINK):
        rest = stripped[len(THINK) :]
        return rest.lstrip("\n") if broken else rest
    if END_OF_THINK in response:
        return response  # it begins inside
    return ("\n" if broken else "\n\n") + f"{END_OF_THINK}\n\n{response}"


def with_instruction(messages: Sequence[Message], instruction: str | None) -> list[Message]:
    """Put the instruction after every user message: after the last only, a prefix would not stay a prefix."""
    if instruction is None:
        return list(messages)
    return [
        replace(message, content=f"{message.content}\n{instruction}") if message.role == "user" else message
        for message in messages
    ]
