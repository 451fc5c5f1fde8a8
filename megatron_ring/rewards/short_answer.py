r"""Question answering: the answer of a response against one or several references.

| domain     | reward                                                                   |
|------------|--------------------------------------------------------------------------|
| `qa/exact` | 1 when the tokens of the answer are those of a reference, in order       |
| `qa/f1`    | the largest F1 of tokens over the references                             |

The reference is text or a number; or a list, of which any entry will do; an entry that is a list itself is one answer of
several spans, as in DROP. `{"answers": […]}` and the objects of SQuAD (`text`), DROP (`spans`) and TriviaQA (`value`,
`aliases`) are read as well. A response separates spans by `|`. F1 is SQuAD's, over bags of tokens that count how often each
occurs; spans are assigned one to one and what is too much counts as wrong, as in DROP, and so does an answer without any
of the numbers of a reference.

An answer that lists all that might be right loses by F1's precision: with n tokens of which one is right it is at most
2 / (n + 1). What F1 cannot see: the order of words, and a "not" among many right words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.answer_text import is_number, said_answer, tokens
from megatron_ring.rewards.assignment import best_sum
from megatron_ring.rewards.instructions.finding import shown
from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.math import MISSING

MAX_REFERENCES = 64
MAX_SPANS = 32
QUICK_CHARACTERS = 1 << 14
_NO_ANSWER = Reward(0.0, "no answer, or too long a one")
_Spans = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class References:
    """The right answers, each of one span or several, a span as its tokens."""

    answers: tuple[_Spans, ...]


def exact(request: ScoreRequest) -> Reward:
    """1 when the spans of the answer are those of a reference, in any order. For the registry."""
    return _score(request, _exactly)


def quick_exact(request: ScoreRequest) -> Reward | None:
    """`exact` where it takes milliseconds; None for long responses."""
    return exact(request) if len(request.response) <= QUICK_CHARACTERS else None


def f1(request: ScoreRequest) -> Reward:
    """The largest F1 over the references. For the registry."""
    return _score(request, span_f1)


def read_references(answer: Any) -> References:
    """Read and check a reference.

    Raises:
        UserError: it has no answer, or one of which nothing is left to compare.
    """
    if isinstance(answer, Mapping):
        return read_references(_listed(answer))
    entries = answer if isinstance(answer, list) else [answer]
    if not 0 < len(entries) <= MAX_REFERENCES:
        raise UserError(f"the reference must have 1 to {MAX_REFERENCES} answers, not {len(entries)}")
    return References(tuple(map(_read_spans, entries)))


def _listed(answer: Mapping[str, Any]) -> Any:
    """The answers of an object: ours, SQuAD's, DROP's or TriviaQA's. Raises `UserError` for another."""
    if "aliases" in answer and isinstance(answer["aliases"], list):
        return [*([answer["value"]] if "value" in answer else []), *answer["aliases"]]
    if "spans" in answer:
        return [answer["spans"]]
    known = [name for name in ("answers", "text") if name in answer]
    if not known or isinstance(answer[known[0]], Mapping):
        raise UserError("the reference must be text, a number, a list of them, or an object with 'answers' or 'text'")
    return answer[known[0]]


def span_f1(gold: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> float:
    """Mean F1 of spans that are assigned one to one so that it is largest; a span without a partner counts 0."""
    table = [[token_f1(wanted, got) for got in given] for wanted in gold]
    return best_sum(table) / max(len(gold), len(given))


def token_f1(wanted: Sequence[str], got: Sequence[str]) -> float:
    """SQuAD's F1 of two bags of tokens; 0 where the reference has numbers and the answer has none of them."""
    common = Counter(wanted) & Counter(got)
    if not common or (any(map(is_number, wanted)) and not any(map(is_number, common))):
        return 0.0
    return 2 * common.total() / (len(wanted) + len(got))


def _exactly(gold: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> float:
    return float(sorted(map(tuple, gold)) == sorted(map(tuple, given)))


def _score(request: ScoreRequest, measure: Any) -> Reward:
    try:
        references = read_references(request.answer)
    except UserError as error:
        return Reward(0.0, str(error))
    said = said_answer(request.response)
    if said is None:
        return _NO_ANSWER
    whole = tokens(said)
    parts = [found for span in said.split("|", MAX_SPANS)[: MAX_SPANS + 1] if (found := tokens(span))]
    best = 0.0
    for gold in references.answers:
        # A bar may also be a part of the only span.
        readings = [[whole]] if len(gold) == 1 and len(parts) <= 1 else [parts or [whole], [whole]]
        best = max(best, *(measure(gold, reading) for reading in readings))
    return Reward(best, f"{best:.2f} for {shown(said)}, reference {shown(_text(references.answers[0]))}")


def _read_spans(entry: Any) -> _Spans:
    spans = entry if isinstance(entry, list) else [entry]
    if not 0 < len(spans) <= MAX_SPANS:
        raise UserError(f"an answer of the reference must have 1 to {MAX_SPANS} spans, not {len(spans)}")
    return tuple(map(_read_span, spans))


def _read_span(span: Any) -> tuple[str, ...]:
    if isinstance(span, bool) or not isinstance(span, str | int | float):
        raise UserError(f"an answer of the reference must be text or a number, not {type(span).__name__}")
    if str(span).strip().lower() in MISSING:
        raise UserError(f"the answer {str(span).strip()!r} of the reference stands for one that is missing")
    found = tuple(tokens(str(span)))
    if not found:
        raise UserError(f"the answer {shown(str(span))} of the reference is empty: nothing could be compared with it")
    return found


def _text(spans: _Spans) -> str:
    return " | ".join(" ".join(span) for span in spans)
