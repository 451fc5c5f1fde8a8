"""What a verifier takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# In the environment of a worker: how many workers share this machine, for those that run things side by side.
WORKERS_VARIABLE = "MEGATRON_RING_REWARD_WORKERS"
# Key of `Reward.detail`: why there is no verdict. Whoever sees it takes nothing from the value.
MACHINE_FAILURE = "machine_failure"
# Key of `Reward.detail`: why the judge gave no verdict, likewise.
JUDGE_FAILURE = "judge_failure"
# Key of `Reward.detail`: the value is a model's score on a scale of its own. It is no share of right answers.
RAW_SCORE = "raw_score"
# Key of `Reward.detail`: the mean of what is measured of a response and not trained.
HELD_OUT = "held_out"
# Key of `Reward.detail`: how far two replies of the judge are apart (0..1), where a second one was asked for.
JUDGE_DISAGREEMENT = "judge_disagreement"


def has_verdict(detail: Mapping[str, Any]) -> bool:
    """Of a `Reward.detail`: false where the machine or the judge failed. The reward, 0, says nothing then."""
    return MACHINE_FAILURE not in detail and JUDGE_FAILURE not in detail


def is_graded(detail: Mapping[str, Any]) -> bool:
    """Whether the reward says how right the response is: there is a verdict, which is no model's score on a scale of its
    own."""
    return has_verdict(detail) and RAW_SCORE not in detail


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward and why it was given, in words for the rollout file.

    Attributes:
        value: the reward; 1 for a correct answer and 0 otherwise where the domain is verifiable.
        reason: one line.
        detail: what it is made of, as JSON: the parts of a composed reward, the findings for each instruction.
            `MACHINE_FAILURE` is in it where the machine failed, so that the value, 0, is no verdict.
    """

    value: float
    reason: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One response to score. Every field must be JSON, it travels to another process.

    Attributes:
        domain: names the verifier, see `registry.VERIFIERS`.
        prompt: the prompt's text or chat messages; None where the verifier needs none.
        response: the sampled text.
        answer: the reference, in the form that the domain's verifier wants.
        length: tokens of the response, for compositions that limit them; None where nobody counted.
    """

    domain: str
    prompt: Any
    response: str
    answer: Any
    length: int | None = None


WorkerKind = Literal["answers", "instructions", "code"]


@dataclass(frozen=True, slots=True)
class Verifier:
    """How one domain is scored.

    Attributes:
        score: decides any request. Runs in a worker process, where it may hang, crash or run out of memory. It raises
            `UserError` only where nothing can be scored at all on this machine; that ends the run.
        quick_score: decides what is certain within milliseconds, whatever the input, and returns None for the rest.
            Runs in the caller's process; None when the domain has no such cases.
        worker: which kind of worker runs it: what it has loaded, and for code no limit on its address space.
        time_limit: seconds for one item where the pool's own limit is too short; None for the pool's.
        check_reference: raises `UserError` for a reference against which no response could be scored, as scoring itself
            would find it; accepts what it cannot tell. Runs in the caller's process, for each row of a prompt file, within
            the time it takes to read the row. None where any reference might do.
        prepare: loads what `quick_score` would load with the first response, in the caller's process.
    """

    score: Callable[[ScoreRequest], Reward]
    quick_score: Callable[[ScoreRequest], Reward | None] | None = None
    worker: WorkerKind = "answers"
    time_limit: float | None = None
    check_reference: Callable[[Any], object] | None = None
    prepare: Callable[[], None] | None = None
