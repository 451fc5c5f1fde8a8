"""Short answers: DROP by F1, BIG-Bench Hard by exact match."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ring.benchmarks.problem import Grade, Loaded, PlacedRow, Problem, Row
from megatron_ring.benchmarks.rows import RowError, as_text, each, first, id_of, need, small, text
from megatron_ring.rewards.assignment import best_sum
from megatron_ring.rewards.boxed import last_boxed

MAX_ANSWER = 2_000  # characters of an answer that are looked at
_ANSWER_IS = re.compile(r"(?i:answer)(?i:\s{1,3}is)?[\s*_]{0,4}:?[ \t*_]{0,6}(?=\S)")
_ARTICLES = {"a", "an", "the"}
_EDGES = " \t.,;:!?\"'`*_$"


def answer_line(response: str) -> str | None:
    """What follows the last 'Answer:' or 'the answer is', to the end of its line; else the last box; None without either."""
    found = max(_ANSWER_IS.finditer(response), key=re.Match.start, default=None)
    line = "" if found is None else response[found.end() :].split("\n", 1)[0].strip()
    boxed = last_boxed(line or response)
    if boxed is not None:
        return boxed.strip()[:MAX_ANSWER]
    return line[:MAX_ANSWER] or None


def read_drop(rows: Sequence[PlacedRow]) -> Loaded:
    """DROP. In its own release a row is a passage with all its questions."""
    return each(drop)([(place, one) for place, row in rows for one in _questions(place, row)])


def _questions(place: str, row: Row) -> list[Row]:
    pairs = row.get("qa_pairs")
    if pairs is None:
        return [row]
    if not isinstance(pairs, list) or not all(isinstance(pair, Mapping) for pair in pairs):
        raise RowError(f"{place}: 'qa_pairs' is no list of {{question, answer}}")
    return [{"section_id": row.get("id"), "passage": row.get("passage"), **small(pair)} for pair in pairs]


def drop(row: Row) -> Problem:
    """DROP: the public files of EleutherAI, of ucinlp, and of simple-evals."""
    passage, question = first(row, "passage"), first(row, "question")
    if passage is None:
        question = text(row, "context")
        golds = [spans.split("|") for spans in [text(row, "ref_text")]]
        golds = [[span.strip()] for span in golds[0] if span.strip()]
    else:
        golds = _golds(row)
        question = f"{passage}\n\n{question}"
    if not golds:
        raise RowError("the row has no answer: neither a number, nor a date, nor a span")
    told = "Think first. The last line of your response is 'Answer: ' and the answer; separate several spans by ' | '."
    return Problem(id_of(row, "query_id", "id"), f"{question}\n\n{told}", golds, "", str(first(row, "section_id") or ""))


def _golds(row: Row) -> list[list[str]]:
    """Every reference, each a list of spans: the answer, and those of further annotators."""
    spans = first(row, "answers_spans.spans")
    if spans is not None:
        return [[as_text(span, "answers_spans") for span in spans]]
    found = [_gold(need(row, "answer"))]
    further = first(row, "validated_answers")
    if isinstance(further, Mapping):  # columns: a list for each field
        size = max((len(values) for values in further.values() if isinstance(values, list)), default=0)
        columns = {name: values for name, values in further.items() if isinstance(values, list)}
        further = [{name: v[i] if i < len(v) else None for name, v in columns.items()} for i in range(size)]
    found += [_gold(answer) for answer in further or []]
    return [gold for i, gold in enumerate(found) if gold and gold not in found[:i]]


def _gold(answer: Any) -> list[str]:
    """Number, else spans, else date, as the benchmark has it; empty where there is none."""
    if not isinstance(answer, Mapping):
        raise RowError("'answer' is no object of number, spans and date")
    number = answer.get("number")
    if number not in (None, ""):
        return [as_text(number, "answer.number")]
    spans = [str(span) for span in answer.get("spans") or [] if str(span).strip()]
    if spans:
        return spans
    date = answer.get("date") or {}
    written = " ".join(str(date.get(part) or "") for part in ("day", "month", "year")).split()
    return [" ".join(written)] if written else []


def score_drop(problem: Problem, response: str) -> Grade:
    """The largest F1 over the references; numbers must match."""
    given = answer_line(response)
    if given is None:
        return Grade(0.0, None, "no line 'Answer: …'")
    spans = [span for span in given.split("|") if span.strip()] or [given]
    value = max(drop_f1(gold, spans) for gold in problem.answer)
    exact = any(sorted(map(_normal, gold)) == sorted(map(_normal, spans)) for gold in problem.answer)
    return Grade(value, " | ".join(sorted(map(_normal, spans))), f"F1 {value:.2f}, exact {'yes' if exact else 'no'}")


def drop_f1(gold: Sequence[str], given: Sequence[str]) -> float:
    """F1 of bags of words, spans assigned one to one so that the sum is largest; to two digits, as the benchmark's."""
    wanted, got = [_bag(span) for span in gold[:64]], [_bag(span) for span in given[:64]]
    table = [[_bag_f1(a, b) for b in got] for a in wanted]
    return round(best_sum(table) / max(len(wanted), len(got)), 2)


def _bag_f1(wanted: set[str], got: set[str]) -> float:
    numbers = {token for token in wanted if _is_number(token)}
    if numbers and not numbers & got:
        return 0.0
    if not wanted or not got:
        return float(wanted == got)
    common = len(wanted & got)
    return 2 * common / (len(wanted) + len(got))


def _bag(span: str) -> set[str]:
    return set(_normal(span).split())


def _normal(span: str) -> str:
    """Tokens between blanks and hyphens, each lower case without punctuation, a number as a float; without articles."""
    tokens = []
    for token in re.split(r"[ \-\n\t]", span[:MAX_ANSWER]):
        token = token.strip().lower()
        bare = token.replace(",", "").lstrip("$£€").rstrip("%.")
        token = str(float(bare)) if _is_number(bare) else re.sub(r"[^\w\s]|_", "", token)
        if token and token not in _ARTICLES:
            tokens.append(token)
    return " ".join(tokens)


def _is_number(token: str) -> bool:
    return re.fullmatch(r"[+-]?\d{1,40}(?:\.\d{0,40})?|\.\d{1,40}", token, re.ASCII) is not None


def bbh(row: Row) -> Problem:
    """BIG-Bench Hard: `input` and `target`. Brackets of a target are part of it."""
    target = need(row, "target")
    target = str(target) if isinstance(target, bool) else as_text(target, "target")
    told = "Think step by step. The last line of your response is 'So the answer is ' and the answer."
    if re.fullmatch(r"\([A-Z]\)", target):
        told += " Answer with the option's letter in brackets."
    category = str(first(row, "task", "category", "subset") or "")
    return Problem(id_of(row, "id"), f"{text(row, 'input')}\n\n{told}", target, "", category)


def score_bbh(problem: Problem, response: str) -> Grade:
    """Exact match; options with or without their brackets, words whatever their case, brackets whatever the blanks."""
    given = answer_line(response)
    if given is None:
        return Grade(0.0, None, "no line 'So the answer is …'")
    wanted, got = _bbh_key(problem.answer, problem.answer), _bbh_key(given, problem.answer)
    return Grade(float(wanted == got), got, f"answered {got[:60]!r}, expected {wanted[:60]!r}")


def _bbh_key(written: str, target: str) -> str:
    option = re.fullmatch(r"\([A-Z]\)", target)
    if option:
        found = re.match(r"[\s*_$({\[\"']{0,8}(?:\\text\s?\{)?\(?([A-Za-z])(?![A-Za-z])", written)
        return f"({found[1].upper()})" if found else written.strip(_EDGES)
    if not any(letter.isalnum() for letter in target):
        return re.sub(r"[\s`*_$.,\"']", "", written)  # brackets to be closed
    return " ".join(written.strip(_EDGES).casefold().split())
