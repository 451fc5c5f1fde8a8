"""Score a response against a list of instructions: reward 1 when all are followed, else 0.

The reference is a row of a public IFEval file, `{"instruction_id_list": [...], "kwargs": [...]}`, with two keys more that
may be left out: `mode`, `strict` (the default) or `loose`, and `thinking`, `drop` (the default: what is before `</think>`
is not judged) or `keep`. Its own `key` and `prompt` are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.instructions import combination, content, edges, formats, keywords, language, length, ring
from megatron_ring.rewards.instructions.arguments import read_arguments
from megatron_ring.rewards.instructions.finding import Check, Finding, shown
from megatron_ring.rewards.instructions.text import answer_part, plain_line_breaks
from megatron_ring.rewards.interface import Reward, ScoreRequest

CHECKS: dict[str, Check] = {
    instruction_id: check
    for family in (keywords, language, length, content, formats, combination, edges, ring)
    for instruction_id, check in family.CHECKS.items()
}

# Longer ones are not looked at: no sampler's limit is near it.
MAX_RESPONSE_CHARACTERS = 1 << 20
MAX_INSTRUCTIONS = 64

_QUICK_CHARACTERS = 1 << 14
_EMPTY = Finding(False, "the response is empty")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction with its arguments."""

    instruction_id: str
    check: Check
    arguments: Any


@dataclass(frozen=True, slots=True)
class InstructionTask:
    """A reference that has been read. `loose`: an instruction may be followed by any of `loose_variants`."""

    instructions: tuple[Instruction, ...]
    loose: bool
    keep_thinking: bool


def score(request: ScoreRequest) -> Reward:
    """1 if every instruction is followed, else 0 and the first that is not, with its numbers. For the registry."""
    try:
        return _score(request.response, read_task(request.answer))
    except UserError as error:
        return Reward(0.0, str(error))


def quick_score(request: ScoreRequest) -> Reward | None:
    """`score` where it takes milliseconds; None for long responses, languages and sentences."""
    try:
        task = read_task(request.answer)
    except UserError as error:
        return Reward(0.0, str(error))
    quick = all(instruction.check.quick for instruction in task.instructions)
    return _score(request.response, task) if quick and len(request.response) <= _QUICK_CHARACTERS else None


def prepare() -> None:
    """Load the models of sentences and languages, so that the first response is not charged for it."""
    probe = {"instruction_id_list": ["change_case:english_lowercase", "ring:sentence_length"]}
    judge("one. two.", read_task({**probe, "kwargs": [None, {"max_words": 9}]}))


def read_task(answer: Any) -> InstructionTask:
    """Read and check a reference; for prompt files, before anything is sampled.

    Raises:
        UserError: an unknown instruction or argument, or one that is missing or malformed. The message names it.
    """
    if not isinstance(answer, dict):
        raise UserError(f"the reference answer must be an object, not {type(answer).__name__}")
    unknown = answer.keys() - {"instruction_id_list", "kwargs", "mode", "thinking", "key", "prompt"}
    if unknown:
        raise UserError(f"the reference answer has an unknown key {shown(str(min(unknown, key=str)))}")
    ids, kwargs = answer.get("instruction_id_list"), answer.get("kwargs")
    if not isinstance(ids, list) or not 0 < len(ids) <= MAX_INSTRUCTIONS:
        raise UserError(f"the reference's instruction_id_list must be a list of 1 to {MAX_INSTRUCTIONS} names")
    if not isinstance(kwargs, list) or len(kwargs) != len(ids):
        raise UserError(f"the reference's kwargs must be a list of {len(ids)}, one for each instruction")
    return InstructionTask(
        instructions=tuple(_instruction(name, arguments) for name, arguments in zip(ids, kwargs, strict=True)),
        loose=_option(answer, "mode", "strict", "loose"),
        keep_thinking=_option(answer, "thinking", "drop", "keep"),
    )


def judge(response: str, task: InstructionTask) -> list[Finding]:
    """One finding for each instruction, for metrics per instruction. `score` decides by all of them."""
    text = plain_line_breaks(response)
    if not task.keep_thinking and (answer := answer_part(text)) != text:
        text = answer.strip()
    return [_find(text, instruction, task.loose) for instruction in task.instructions]


def loose_variants(text: str) -> Iterator[str]:
    """The texts of the public loose accuracy: without the first line, the last, both; each with and without asterisks.

    They forgive an introduction, a closing remark and markdown emphasis. The text itself comes first.
    """
    rows = text.split("\n")
    cuts = [text, "\n".join(rows[1:]).strip(), "\n".join(rows[:-1]).strip(), "\n".join(rows[1:-1]).strip()]
    yield from dict.fromkeys(variant for cut in cuts for variant in (cut, cut.replace("*", "")))


def _score(response: str, task: InstructionTask) -> Reward:
    if len(response) > MAX_RESPONSE_CHARACTERS:
        return Reward(0.0, f"the response has {len(response)} characters, more than {MAX_RESPONSE_CHARACTERS}")
    findings = judge(response, task)
    followed = sum(finding.followed for finding in findings)
    each = zip(task.instructions, findings, strict=True)
    detail = {"instructions": [[instruction.instruction_id, finding.followed] for instruction, finding in each]}
    for instruction, finding in zip(task.instructions, findings, strict=True):
        if not finding.followed:
            why = " ".join(finding.detail.split())
            said = f"{instruction.instruction_id}: {why} ({followed} of {len(findings)} followed)"
            return Reward(0.0, said, detail)
    return Reward(1.0, f"{followed} of {len(findings)} instructions followed", detail)


def _find(text: str, instruction: Instruction, loose: bool) -> Finding:
    """The finding for the text itself, or for the first of its loose variants that follows the instruction."""
    first = _find_in(text, instruction)
    if first.followed or not loose:
        return first
    variants = (_find_in(variant, instruction) for variant in loose_variants(text) if variant != text)
    return next((finding for finding in variants if finding.followed), first)


def _find_in(text: str, instruction: Instruction) -> Finding:
    return instruction.check.find(text, instruction.arguments) if text.strip() else _EMPTY


def _instruction(name: Any, arguments: Any) -> Instruction:
    check = CHECKS.get(name) if isinstance(name, str) else None
    if check is None:
        raise UserError(f"unknown instruction {shown(str(name))}: use one of {', '.join(sorted(CHECKS))}")
    try:
        return Instruction(name, check, read_arguments(check.arguments, arguments))
    except UserError as error:
        raise UserError(f"instruction {name}: {error}") from None


def _option(answer: dict[str, Any], name: str, default: str, other: str) -> bool:
    """Whether the option has its other value."""
    value = answer.get(name)
    if value not in (None, default, other):
        raise UserError(f"the reference's {name} must be {default!r} or {other!r}, not {shown(repr(value))}")
    return bool(value == other)
