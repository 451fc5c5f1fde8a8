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
A gate is a part that must get 1. `parts` says what else a part may have. Everything here is pure: `request_of` says what to
score, `combine` puts the rewards together and keeps each, so that each can be logged; `scorer` does the scoring between.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.declared import check_entries, list_of, number_of
from megatron_ring.rewards.interface import (
    HELD_OUT,
    JUDGE_DISAGREEMENT,
    JUDGE_FAILURE,
    MACHINE_FAILURE,
    RAW_SCORE,
    Reward,
    ScoreRequest,
    has_verdict,
)
from megatron_ring.rewards.parts import Part, Source, read_part


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


def request_of(source: Source, request: ScoreRequest) -> ScoreRequest:
    """What to score for a part, a gate or a rule, where `request` is that of the composition's domain.

    Raises:
        UserError: the row's answer lacks the reference.
    """
    reference = source.reference(request.domain, request.answer)
    return ScoreRequest(source.domain, request.prompt, request.response, reference, request.length)


def combine(
    composition: Composition, rewards: Mapping[str, Reward], length: int | None, by_rule: Collection[str] = ()
) -> Reward:
    """Put the rewards of parts and gates together; the reason names the gate that failed, or each part's.

    The penalty is outside the gates: an overlong response is punished whether it passes them or not, and what fails a
    gate at an allowed length gets 0. The detail is `{"parts": {name: [value, reason]}, "gates": …, "length_penalty": …}`;
    `rules` says of each part with rules whether one decided it, `HELD_OUT` is the mean of the parts of weight 0, `RAW_SCORE`
    says that a part is a model's score that no sigmoid has brought to 0..1.
    Where the machine or the judge failed for any of them, but for parts of weight 0, there is no verdict on the whole,
    whatever the others got: the total is 0, and its detail says why under the same key as that of the part does.

    Args:
        by_rule: the parts that a rule decided.

    Raises:
        UserError: a length that is limited is not known.
    """
    penalty = 0.0
    if composition.length is not None:
        if length is None or length < 0:
            raise UserError(f"the reward limits the response's length, which is {length}: give 'length' in tokens")
        penalty = overlong_penalty(length, composition.length.maximum, composition.length.cache)
    parts, gates = composition.parts, composition.gates
    values = {part.name: _value(part, rewards[part.name], part.name in by_rule) for part in parts}
    failed = next((gate.name for gate in gates if rewards[gate.name].value < 1), None)
    counted = [rewards[part.name] for part in (*parts, *gates) if part.weight or part in gates]
    failures = {key: one for one in counted for key in (MACHINE_FAILURE, JUDGE_FAILURE) if key in one.detail}
    if failures:
        value, reason = 0.0, next(iter(failures.values())).reason
    elif failed is None:
        value = math.fsum(part.weight * values[part.name] for part in parts)
        reason = "; ".join(f"{part.name} {values[part.name]:g} ({rewards[part.name].reason})" for part in parts)
    else:
        value, reason = 0.0, f"gate {failed}: {rewards[failed].reason}"
    if composition.length is not None and penalty and not failures:
        term = composition.length.weight * penalty
        value, reason = value + term, f"{reason}; length {length} costs {-term:g}"
    detail: dict[str, Any] = {
        "parts": {part.name: [values[part.name], rewards[part.name].reason] for part in parts},
        "gates": {gate.name: [rewards[gate.name].value, rewards[gate.name].reason] for gate in gates},
    }
    if composition.length is not None:
        detail["length_penalty"] = penalty
    return Reward(value, reason, detail | _noted(composition, rewards, values, by_rule) | _keys(failures))


def _value(part: Part, reward: Reward, by_rule: bool) -> float:
    return reward.value if part.scale is None or by_rule else part.scale(reward.value)


def _keys(failures: Mapping[str, Reward]) -> dict[str, Any]:
    return {key: reward.detail[key] for key, reward in failures.items()}


def _noted(
    composition: Composition, rewards: Mapping[str, Reward], values: Mapping[str, float], by_rule: Collection[str]
) -> dict[str, Any]:
    """What else the detail says: of rules, of parts that are measured alone, of the judge's second replies."""
    noted: dict[str, Any] = {}
    as_it_is = [one for one in composition.parts if one.weight and not (one.scale and one.scale.sigmoid)]
    if any(RAW_SCORE in rewards[one.name].detail for one in as_it_is if one.name not in by_rule):
        noted[RAW_SCORE] = True
    ruled = {part.name: part.name in by_rule for part in composition.parts if part.rules}
    if ruled:
        noted["rules"] = ruled
    measured = [part.name for part in composition.parts if not part.weight]
    told = [values[name] for name in measured if has_verdict(rewards[name].detail)]
    if told:
        noted[HELD_OUT] = math.fsum(told) / len(told)
    apart = [reward.detail[JUDGE_DISAGREEMENT] for reward in rewards.values() if JUDGE_DISAGREEMENT in reward.detail]
    if apart:
        noted[JUDGE_DISAGREEMENT] = math.fsum(apart) / len(apart)
    return noted


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
    check_entries(declared, "the composition", {"parts"}, {"gates", "length"})
    parts = tuple(read_part(entry, True) for entry in list_of(declared["parts"], "parts"))
    gates = tuple(read_part(entry, False) for entry in list_of(declared.get("gates") or [], "gates"))
    if not parts:
        raise UserError("'parts' is empty, declare at least one")
    twice = [name for name, count in Counter(part.name for part in (*parts, *gates)).items() if count > 1]
    if twice:
        raise UserError(f"the name {twice[0]!r} is declared twice")
    limit = declared.get("length")
    return Composition(parts, gates, None if limit is None else _read_length(limit))


def _read_length(entry: Any) -> LengthLimit:
    check_entries(entry, "'length'", {"maximum", "cache"}, {"weight"})
    maximum, cache = entry["maximum"], entry["cache"]
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (maximum, cache))
    if not whole or not 0 <= cache <= maximum or maximum == 0:
        raise UserError(f"'length' wants whole numbers 0 <= cache <= maximum, not {cache!r} and {maximum!r}")
    return LengthLimit(maximum, cache, number_of(entry, "weight", 1.0))
