"""The judge's domains as batch scorers: a score, a rubric, a true answer, pairs around the circle of a group.

What the judge says is read strictly (`judging.verdict`). A response whose judgement fails has no verdict: it is not trained,
and it is no part of its group's baseline. So a failure moves the policy in no direction. It is counted.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

from megatron_ring.judging.protocol import ATTEMPTS, PROTOCOLS, Case, Judgement, Protocol, first_prompt, judge
from megatron_ring.rewards.batch import BatchItem
from megatron_ring.rewards.instructions.text import THINK_CLOSE, answer_part
from megatron_ring.rewards.interface import JUDGE_DISAGREEMENT, JUDGE_FAILURE, Reward
from megatron_ring.rewards.judged import criteria, reference_text, true_answer
from megatron_ring.rollout.policy_judge import judge_of
from megatron_ring.rollout.texts import opens_thinking

DRAW = Judgement(0.5, (), (), "the same answer")


@dataclass(frozen=True)
class Share:
    """What one judgement does for a response.

    Attributes:
        case: its place among the cases; None for a draw that no judge is asked for.
        as_other: the response is the other answer of a pair, so that its score is 1 - the case's.
    """

    case: int | None
    as_other: bool = False


class JudgeScorer(ABC):
    """One protocol of the run's judge. A response's reward is the mean of its judgements (0..1)."""

    protocol: ClassVar[Protocol]

    def __init__(self, resources: Any) -> None:
        """All ranks take part.

        Args:
            resources: `rollout.scoring.ScorerResources`.

        Raises:
            UserError: the judge cannot be had.
        """
        self._judge, self._again = judge_of(resources), resources.config.judge.again
        tokenizer = resources.tokenizer
        self._opened = opens_thinking(tokenizer, tokenizer.prompt_tokens("?"))

    def score(self, items: Sequence[BatchItem]) -> list[Reward]:
        """See `BatchScorer`."""
        answers = [self._answer(item) for item in items]
        cases, shares = self.cases(items, answers)
        with self._judge.at_hand():
            found = judge(self.protocol, cases, self._judge)
            repeated = [number for number, case in enumerate(cases) if self._is_repeated(case)]
            second = dict(zip(repeated, self._second([cases[number] for number in repeated]), strict=True))
        return [self._reward(answer, of_item, found, second) for answer, of_item in zip(answers, shares, strict=True)]

    @abstractmethod
    def cases(self, items: Sequence[BatchItem], answers: Sequence[str]) -> tuple[list[Case], list[list[Share]]]:
        """What to judge, and which of it is about which response; nothing is about one without an answer."""

    def _reward(
        self, answer: str, shares: Sequence[Share], found: Sequence[Judgement], second: Mapping[int, Judgement]
    ) -> Reward:
        if not shares:
            return self.without_case(answer)
        scores, said, apart = [], [], []
        for share in shares:
            first = DRAW if share.case is None else found[share.case]
            other = None if share.case is None else second.get(share.case)
            if first.score is None:
                return Reward(0.0, f"no verdict, {first.reason}", {JUDGE_FAILURE: first.reason})
            scores.append(1.0 - first.score if share.as_other else first.score)
            said.append(f"{'as B ' if share.as_other else ''}{first.reason.removeprefix('judge: ')}")
            if other is not None and other.score is not None:
                apart.append(abs(other.score - first.score))
        return Reward(fmean(scores), f"judge: {'; '.join(said)}", {JUDGE_DISAGREEMENT: fmean(apart)} if apart else {})

    def without_case(self, answer: str) -> Reward:
        """The reward of a response that no case is about."""
        return Reward(0.0, "no answer after the thinking")

    def _second(self, cases: Sequence[Case]) -> list[Judgement]:
        """Other replies to the same cases; nothing is asked where none are wanted. All ranks call it."""
        return judge(self.protocol, cases, self._judge, first_attempt=ATTEMPTS) if self._again else []

    def _is_repeated(self, case: Case) -> bool:
        """Told by the texts, so that a continued run asks for the same ones again."""
        if not self._again:
            return False
        text = "\0".join((case.question, case.answer, case.reference, case.other))
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self._again * 2**64

    def _answer(self, item: BatchItem) -> str:
        """What a reader is shown of a response."""
        response = item.request.response
        return "" if self._opened and THINK_CLOSE not in response else answer_part(response).strip()


class _Pointwise(JudgeScorer):
    """Each response is judged on its own, so that a server can be asked before the round is over."""

    def cases(self, items: Sequence[BatchItem], answers: Sequence[str]) -> tuple[list[Case], list[list[Share]]]:
        cases: list[Case] = []
        shares: list[list[Share]] = []
        for item, answer in zip(items, answers, strict=True):
            own = self._cases_of(item, answer)
            shares.append([Share(len(cases) + number) for number in range(len(own))])
            cases += own
        return cases, shares

    def begin(self, item: BatchItem) -> None:
        """See `EagerScorer`."""
        self._judge.begin([first_prompt(self.protocol, case) for case in self._cases_of(item, self._answer(item))])

    def _cases_of(self, item: BatchItem, answer: str) -> list[Case]:
        question = conversation_text(item.request.prompt)
        return [Case(question, answer, text) for text in self.references(item.request.answer)] if answer else []

    @abstractmethod
    def references(self, answer: Any) -> list[str]:
        """What the response is compared with, one judgement each; `answer` is the row's."""


class ScoreJudge(_Pointwise):
    """`judge`: 1 to 10, as 0.1 to 1. A row's answer that is a text, and not blank, is a reference answer."""

    protocol = PROTOCOLS["score"]

    def references(self, answer: Any) -> list[str]:
        return [reference_text(answer)]


class RubricJudge(_Pointwise):
    """`judge/rubric`: the share of the row's criteria that are met."""

    protocol = PROTOCOLS["rubric"]

    def references(self, answer: Any) -> list[str]:
        return criteria(answer)


class ReferenceJudge(_Pointwise):
    """`judge/reference`: 1 where the response commits to the row's true answer."""

    protocol = PROTOCOLS["reference"]

    def references(self, answer: Any) -> list[str]:
        return [true_answer(answer)]


class PairwiseJudge(JudgeScorer):
    """`judge/pairwise`: each response of a group against the next one around the circle, N comparisons for N responses.

    Each stands once before its neighbour and once behind one, so that a liking for a place is the same for all. The reward
    is the mean of both results: 1 better, 0.5 equal, 0 worse. Equal answers are equal, and an answer is better than none;
    the judge is not asked for that. With two responses both orders are compared.
    """

    protocol = replace(PROTOCOLS["pairwise"], both_orders=False)

    def cases(self, items: Sequence[BatchItem], answers: Sequence[str]) -> tuple[list[Case], list[list[Share]]]:
        groups: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            if answers[place]:
                groups.setdefault(item.group, []).append(place)
        cases: list[Case] = []
        shares: list[list[Share]] = [[] for _ in items]
        for places in groups.values():
            for number, place in enumerate(places if len(places) > 1 else []):
                neighbour = places[(number + 1) % len(places)]
                equal = answers[place] == answers[neighbour]
                shares[place].append(Share(None if equal else len(cases)))
                shares[neighbour].append(Share(None if equal else len(cases), as_other=True))
                if equal:
                    continue
                cases.append(Case(conversation_text(items[place].request.prompt), answers[place], other=answers[neighbour]))
        return cases, shares

    def without_case(self, answer: str) -> Reward:
        return Reward(0.5, "no other answer to compare with") if answer else super().without_case(answer)


def conversation_text(prompt: Any) -> str:
    """A prompt as the judge reads it: the text, or the turns with their roles where there are several."""
    if isinstance(prompt, str):
        return prompt
    turns = [(str(turn.get("role", "")), _content(turn)) for turn in prompt]
    if [role for role, _ in turns] == ["user"]:
        return turns[0][1]
    return "\n\n".join(f"[{role}]\n{content}" for role, content in turns)


def _content(turn: Mapping[str, Any]) -> str:
    content = turn.get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return "\n".join(part for part in (text, str(turn.get("calls", ""))) if part)
