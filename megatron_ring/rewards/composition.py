"""Rewards made of verifiers and batch scorers: a weighted sum, gates that zero it, and DAPO's penalty for what is too long.

    total = gates · Σ weight · reward + length weight · penalty(length)

Declared as JSON, for each domain of the prompt files that is not a verifier's own name:

    {"math/formatted": {
       "parts": [{"name": "correct", "domain": "math", "answer": "value"},
                 {"name": "rules", "domain": "instructions", "answer": "rules", "weight": 0.5}],
       "gates": [{"name": "thinking", "domain": "format/thinking"},
                 {"name": "english", "domain": "format/script", "with": {"script": "latin", "share": 0.9}}],
       "length": {"maximum": 20480, "cache": 4096}}}

A part's reference is `answer`, a key of the row's answer; or `with`, the same for every row; or the row's whole answer.
A gate is a part that must get 1. Everything here is pure: `part_requests` says what to score, `combine` puts the rewards
together and keeps each, so that each can be logged; `scorer` does the scoring between.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards import format
from megatron_ring.rewards.batch import reference_check
from megatron_ring.rewards.instructions.finding import shown
from megatron_ring.rewards.interface import JUDGE_DISAGREEMENT, JUDGE_FAILURE, MACHINE_FAILURE, Reward, ScoreRequest


@dataclass(frozen=True, slots=True)
class Part:
    """The share of one verifier or batch scorer.

    Attributes:
        name: in logs, unlike that of any other part or gate.
        domain: names it.
        weight: at least 0; gates have none.
        key: which entry of the row's answer is its reference; None for the whole answer.
        constant: its reference for every row, in a tuple of one; empty where the row has it.
    """

    name: str
    domain: str
    weight: float = 1.0
    key: str | None = None
    constant: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class LengthLimit:
    """DAPO's soft punishment. `maximum` and `cache` in tokens of the response; `weight` at least 0."""

    maximum: int
    cache: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Composition:
    """What a reward is made of, see the module."""

    parts: tuple[Part, ...]
    gates: tuple[Part, ...] = ()
    length: LengthLimit | None = None


def part_requests(composition: Composition, request: ScoreRequest) -> dict[str, ScoreRequest]:
    """What to score, by the name of part or gate.

    Raises:
        UserError: the row's answer lacks a part's.
    """
    requests = {}
    for part in (*composition.parts, *composition.gates):
        reference = part_reference(part, request.domain, request.answer)
        requests[part.name] = ScoreRequest(part.domain, request.prompt, request.response, reference, request.length)
    return requests


def part_reference(part: Part, domain: str, answer: Any) -> Any:
    """The reference of a part or gate, where `answer` is the row's. Raises `UserError` when the row lacks it."""
    if part.key is None:
        return part.constant[0] if part.constant else answer
    if not isinstance(answer, Mapping) or part.key not in answer:
        raise UserError(f"domain {domain!r}: the answer must be an object with the key {part.key!r}")
    return answer[part.key]


def combine(composition: Composition, rewards: Mapping[str, Reward], length: int | None) -> Reward:
    """Put the rewards of parts and gates together; the reason names the gate that failed, or each part's.

    The penalty is outside the gates: an overlong response is punished whether it passes them or not, and what fails a
    gate at an allowed length gets 0. The detail is `{"parts": {name: [value, reason]}, "gates": …, "length_penalty": …}`.
    Where the machine or the judge failed for any of them there is no verdict on the whole, whatever the others got: the
    total is 0, and its detail says why under the same key as that of the part does.

    Raises:
        UserError: a length that is limited is not known.
    """
    penalty = 0.0
    if composition.length is not None:
        if length is None or length < 0:
            raise UserError(f"the reward limits the response's length, which is {length}: give 'length' in tokens")
        penalty = overlong_penalty(length, composition.length.maximum, composition.length.cache)
    failed = next((gate.name for gate in composition.gates if rewards[gate.name].value < 1), None)
    failures = {
        key: reward for reward in rewards.values() for key in (MACHINE_FAILURE, JUDGE_FAILURE) if key in reward.detail
    }
    if failures:
        value, reason = 0.0, next(iter(failures.values())).reason
    elif failed is None:
        value = math.fsum(part.weight * rewards[part.name].value for part in composition.parts)
        given = ((part.name, rewards[part.name]) for part in composition.parts)
        reason = "; ".join(f"{name} {reward.value:g} ({reward.reason})" for name, reward in given)
    else:
        value, reason = 0.0, f"gate {failed}: {rewards[failed].reason}"
    if composition.length is not None and penalty and not failures:
        term = composition.length.weight * penalty
        value, reason = value + term, f"{reason}; length {length} costs {-term:g}"
    detail: dict[str, Any] = {
        "parts": {part.name: [rewards[part.name].value, rewards[part.name].reason] for part in composition.parts},
        "gates": {gate.name: [rewards[gate.name].value, rewards[gate.name].reason] for gate in composition.gates},
    }
    if composition.length is not None:
        detail["length_penalty"] = penalty
    apart = [reward.detail[JUDGE_DISAGREEMENT] for reward in rewards.values() if JUDGE_DISAGREEMENT in reward.detail]
    if apart:
        detail[JUDGE_DISAGREEMENT] = math.fsum(apart) / len(apart)
    detail |= {key: reward.detail[key] for key, reward in failures.items()}
    return Reward(value, reason, detail)


def overlong_penalty(length: int, maximum: int, cache: int) -> float:
    """DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13).

    0 up to `maximum - cache`, from there linear to -1 at `maximum`, -1 beyond. Without a cache it is a step.
    """
    if length > maximum:
        return -1.0
    return min(0.0, (maximum - cache - length) / cache) if cache else 0.0


def fingerprint(path: Path) -> str:
    """A hash (32 hex digits) of what a file of compositions declares, however it is laid out.

    Raises:
        UserError: it cannot be read.
    """
    text = json.dumps(_declared(path), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_compositions(path: Path) -> dict[str, Composition]:
    """Read and check a file of compositions, by domain.

    Raises:
        UserError: it names the file and what is unknown, missing or malformed in it.
    """
    declared = _declared(path)
    if not isinstance(declared, dict) or not declared:
        raise UserError(f"{path}: make it an object with a composition for each domain")
    compositions = {}
    for domain, entry in declared.items():
        try:
            compositions[domain] = read_composition(entry)
        except UserError as error:
            raise UserError(f"{path}: domain {domain!r}: {error}") from None
    return compositions


def _declared(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {str(error).splitlines()[0]}") from None


def read_composition(declared: Any) -> Composition:
    """Check one parsed declaration. Raises `UserError`, naming the entry."""
    _entries(declared, "the composition", {"parts"}, {"gates", "length"})
    parts = tuple(_read_part(entry, weighted=True) for entry in _list(declared["parts"], "parts"))
    gates = tuple(_read_part(entry, weighted=False) for entry in _list(declared.get("gates") or [], "gates"))
    if not parts:
        raise UserError("'parts' is empty, declare at least one")
    twice = [name for name, count in Counter(part.name for part in (*parts, *gates)).items() if count > 1]
    if twice:
        raise UserError(f"the name {twice[0]!r} is declared twice")
    limit = declared.get("length")
    return Composition(parts, gates, None if limit is None else _read_length(limit))


def _read_part(entry: Any, weighted: bool) -> Part:
    what = "a part" if weighted else "a gate"
    _entries(entry, what, {"name", "domain"}, {"answer", "with"} | ({"weight"} if weighted else set()))
    name, domain = _text(entry, "name"), _text(entry, "domain")
    if "answer" in entry and "with" in entry:
        raise UserError(f"{what[2:]} {name!r} has both 'answer' and 'with', keep one")
    key = _text(entry, "answer") if "answer" in entry else None
    constant = (entry["with"],) if "with" in entry else ()
    try:
        check = reference_check(domain)
        if domain.startswith("format/") and key is None:
            constant = (format.read_options(domain, constant[0] if constant else {}),)
        elif constant and check is not None:
            check(constant[0])
    except UserError as error:
        raise UserError(f"{what[2:]} {name!r}: {error}") from None
    return Part(name, domain, _number(entry, "weight", 1.0), key, constant)


def _read_length(entry: Any) -> LengthLimit:
    _entries(entry, "'length'", {"maximum", "cache"}, {"weight"})
    maximum, cache = entry["maximum"], entry["cache"]
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (maximum, cache))
    if not whole or not 0 <= cache <= maximum or maximum == 0:
        raise UserError(f"'length' wants whole numbers 0 <= cache <= maximum, not {cache!r} and {maximum!r}")
    return LengthLimit(maximum, cache, _number(entry, "weight", 1.0))


def _entries(entry: Any, what: str, required: set[str], optional: set[str]) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{what} must be an object, not {type(entry).__name__}")
    for name in sorted(required - entry.keys()):
        raise UserError(f"{what} has no {name!r}")
    for name in sorted(map(str, entry.keys() - required - optional)):
        raise UserError(f"{what} has an unknown key {shown(name)}")


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{what!r} must be a list, not {type(value).__name__}")
    return value


def _text(entry: dict[str, Any], name: str) -> str:
    value = entry[name]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name!r} must be text, not {shown(repr(value))}")
    return value


def _number(entry: dict[str, Any], name: str, default: float) -> float:
    value = entry.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"{name!r} must be a number of at least 0, not {shown(repr(value))}")
    return float(value)
