"""Answers of another model, which a benchmark's are compared with: from a public file, or from another evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ring.benchmarks.problem import Problem
from megatron_ring.benchmarks.rows import RowError, first, id_of, small
from megatron_ring.benchmarks.thinking import scored_text
from megatron_ring.data.public_rows import public_files, read_public_rows, sha256_of
from megatron_ring.errors import UserError
from megatron_ring.rollout.journal import read_journals

FLAG = "--judge.baseline"


def read_baseline(path: Path, benchmark: str, problems: Sequence[Problem]) -> tuple[dict[str, str], str]:
    """The answer to each problem by its id, without thinking, and the SHA-256 of what was read.

    Rows name the problem by `uid`, `question_id` or `id`. The answer is the assistant's last message of `messages`, whose
    content may be an object with an `answer`; the last turn of the first of `choices`; or `response`, `answer`, `output`.

    Raises:
        UserError: that names the flag, or the file and line.
    """
    folder = path / "responses"
    files = sorted(folder.glob("replica-*.jsonl")) if folder.is_dir() else public_files(path)
    answers = _of_evaluation(folder, benchmark) if folder.is_dir() else _of_files(files)
    missing = [problem.id for problem in problems if problem.id not in answers]
    if missing:
        raise UserError(
            f"{FLAG} {path}: no answer to {len(missing):,} of {len(problems):,} problems of {benchmark}, the first is "
            f"{missing[0]}: give the baseline's answers to this file"
        )
    return {problem.id: answers[problem.id] for problem in problems}, sha256_of(files)


def _of_evaluation(folder: Path, benchmark: str) -> dict[str, str]:
    """The first sample of each problem. An answer that never came is empty."""
    found = {}
    for (name, problem, _), row in sorted(read_journals(folder)[0].items(), reverse=True):
        if name == benchmark:
            found[problem] = scored_text(row["response"], row["opened"]) or ""
    return found


def _of_files(files: Sequence[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in files:
        for place, placed in read_public_rows(file):
            row = small(placed)
            try:
                name, answer = id_of(row, "uid", "question_id", "id"), _answer(row)
            except RowError as error:
                raise UserError(f"{place}: {error}") from None
            if not name or answer is None:
                what = "no uid, question_id or id" if not name else "no messages, choices, response, answer or output"
                raise UserError(f"{place}: {what}: give a file of a model's answers")
            if found.setdefault(name, answer) != answer:
                raise UserError(f"{place}: a second answer to {name}: give the answers of one model")
    return {name: scored_text(answer) or "" for name, answer in found.items()}


def _answer(row: Mapping[str, Any]) -> str | None:
    """The text of a row's answer; None where it has none."""
    messages = row.get("messages")
    if isinstance(messages, list):
        said = [item.get("content") for item in messages if isinstance(item, dict) and item.get("role") == "assistant"]
        return _text(said[-1]) if said else None
    choices = row.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        turns = choices[0].get("turns")
        last = turns[-1] if isinstance(turns, list) and turns else None
        return _text(last.get("content")) if isinstance(last, dict) else _text(last)
    return _text(first(row, "response", "answer", "output"))


def _text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("answer")
    return value if isinstance(value, str) else None
