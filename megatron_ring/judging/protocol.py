"""How a judge is asked and what its verdicts are worth: a score, a rubric, a reference, a pair in both orders.

A reply without a verdict is asked for once more, with another code. What has none then is excluded and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from megatron_ring.judging.prompt_files import JudgePrompt, read_prompt
from megatron_ring.judging.verdict import Reply, Verdict, code_of, read_grades, read_verdict

ATTEMPTS = 2
REASON_CHARACTERS = 300


@dataclass(frozen=True)
class Case:
    """One response to judge.

    Attributes:
        question: what was asked.
        answer: the response, without its thinking.
        reference: a reference answer, or the criterion of a rubric.
        other: the answer that it is compared with.
        dimensions: names of what is graded beside the whole, 1 to 10 each; of protocols that have a prompt for it.
    """

    question: str
    answer: str
    reference: str = ""
    other: str = ""
    dimensions: tuple[str, ...] = ()


# Replies to prompts, in order. Raises `UserError` where the judge as a whole cannot be asked.
Generate = Callable[[Sequence[str]], Sequence[Reply]]


@dataclass(frozen=True)
class Protocol:
    """One way to judge.

    Attributes:
        worth: what each verdict is worth to the answer, 0..1.
        prompts: names of the prompts without a reference, with one, and with dimensions beside it.
        both_orders: every pair is judged twice, with its answers exchanged.
    """

    name: str
    worth: Mapping[str, float]
    prompts: tuple[str, ...]
    both_orders: bool = False

    @cached_property
    def files(self) -> dict[str, JudgePrompt]:
        """The prompts by name."""
        return {name: read_prompt(name) for name in self.prompts}

    def describe(self) -> dict[str, Any]:
        """What decides verdicts besides the judge: goes into the result."""
        prompts = {file.name: {"version": file.version, "sha256": file.sha256} for file in self.files.values()}
        return {"protocol": self.name, "prompts": prompts}


_SCORES = {str(number): number / 10 for number in range(1, 11)}
_PAIRS = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("score", _SCORES, ("score", "score-reference", "score-dimensions")),
        Protocol("rubric", {"YES": 1.0, "NO": 0.0}, ("rubric", "rubric")),
        Protocol("reference", {"CORRECT": 1.0, "WRONG": 0.0, "UNANSWERED": 0.0}, ("reference", "reference")),
        Protocol("pairwise", _PAIRS, ("pairwise", "pairwise"), both_orders=True),
    )
}


@dataclass(frozen=True)
class Judgement:
    """What became of a case.

    Attributes:
        score: 0..1; None where the judge failed.
        verdicts: as the judge gave them: one, or one for each order, the answer first as A, then as B.
        problems: why a reply had no verdict, of each such reply.
        reason: one line.
        dimensions: what was graded beside the whole, 1 to 10; one that the reply does not grade once is left out.
    """

    score: float | None
    verdicts: tuple[str, ...]
    problems: tuple[str, ...]
    reason: str
    dimensions: Mapping[str, int] = field(default_factory=dict)


@dataclass
class _Question:
    """A case in one order."""

    case: Case
    verdict: Verdict
    problems: list[str]
    dimensions: Mapping[str, int] = field(default_factory=dict)


def judge(protocol: Protocol, cases: Sequence[Case], generate: Generate, first_attempt: int = 0) -> list[Judgement]:
    """Judge cases, in order. Raises what `generate` does, which is called `ATTEMPTS` times, whatever there is to ask.

    Args:
        first_attempt: decides the codes in the prompts; from `ATTEMPTS` on they are those of a second opinion.
    """
    orders = 2 if protocol.both_orders else 1
    questions = [_Question(_in_order(case, order), Verdict(None, ""), []) for case in cases for order in range(orders)]
    values = tuple(protocol.worth)
    for attempt in range(first_attempt, first_attempt + ATTEMPTS):
        open_ones = [question for question in questions if question.verdict.value is None]
        asked = [_prompt(protocol, question.case, attempt) for question in open_ones]
        replies = generate([prompt for prompt, _ in asked])  # also where there is none: other ranks may have some
        for question, (_, code), reply in zip(open_ones, asked, replies, strict=True):
            question.verdict = read_verdict(reply, code, values)
            if question.verdict.problem is not None:
                question.problems.append(question.verdict.problem)
            else:
                question.dimensions = read_grades(reply, code, question.case.dimensions)
    return [_judgement(protocol, questions[first : first + orders]) for first in range(0, len(questions), orders)]


def first_prompt(protocol: Protocol, case: Case) -> str:
    """What `judge` asks of a case first, in its own order."""
    return _prompt(protocol, case, 0)[0]


def _in_order(case: Case, order: int) -> Case:
    return replace(case, answer=case.other, other=case.answer) if order else case


def _prompt(protocol: Protocol, case: Case, attempt: int) -> tuple[str, str]:
    """The prompt of a case and its code."""
    file = protocol.files[protocol.prompts[2 if case.dimensions else bool(case.reference)]]
    texts = {"question": case.question, "answer": case.answer, "reference": case.reference, "other": case.other,
             **({"dimensions": "\n".join(case.dimensions)} if case.dimensions else {})}  # fmt: skip
    texts = {name: text.encode("utf-8", "replace").decode() for name, text in texts.items()}
    code = code_of(file.sha256, str(attempt), *texts.values())
    return file.fill({**texts, "code": code}), code


def _judgement(protocol: Protocol, asked: Sequence[_Question]) -> Judgement:
    problems = tuple(problem for question in asked for problem in question.problems)
    verdicts = tuple(question.verdict.value for question in asked if question.verdict.value is not None)
    if len(verdicts) < len(asked):
        return Judgement(None, verdicts, problems, f"judge failed: {problems[-1]}"[:REASON_CHARACTERS])
    worths = [protocol.worth[verdict] for verdict in verdicts]
    if protocol.both_orders:
        worths[1] = 1.0 - worths[1]
    reason = f"judge: {', then '.join(verdicts)}"
    return Judgement(sum(worths) / len(worths), verdicts, problems, reason, asked[0].dimensions)
