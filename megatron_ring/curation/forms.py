"""Public files as they are downloaded, read for curation: the forms of `data.forms`, a few more, and what those leave out
that cleansing needs, which is solutions and the columns that say what kind of question a row is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from megatron_ring.data.forms import Form, Row, answer_text, columns, kept, small
from megatron_ring.data.messages import RecordError, kind_of
from megatron_ring.data.prompt_forms import PROMPT_FORMS, prompt_form, with_starter
from megatron_ring.errors import UserError
from megatron_ring.rewards.boxed import last_boxed, marked_answer
from megatron_ring.rewards.codeforces import Unsupported, codeforces_answer
from megatron_ring.rewards.python_source import read_literal

MAX_LITERAL = 1 << 20  # characters of Python's notation that are read
_LANGUAGES = {"python": "python", "python3": "python", "py": "python", "cpp": "cpp", "c++": "cpp", "java": "java"}


class Lacking(RecordError):
    """A row without a problem or an answer. The message is the reason for the ledger, then the evidence."""

    def __init__(self, reason: str, evidence: str) -> None:
        super().__init__(evidence)
        self.reason = reason


def _literal(value: Any, name: str) -> Any:
    """An object that is JSON text, or text in Python's notation as `str(dict)` writes it. Nothing is evaluated."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        if len(value) > MAX_LITERAL:
            raise ValueError("too long")
        return read_literal(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise RecordError(f"'{name}' is neither JSON nor a Python literal") from None


def _bigmath(row: Row) -> Row:
    """BigMath: `domain` is a list of subjects, not our domain."""
    subjects = row.get("domain")
    subject = subjects[0] if isinstance(subjects, list) and subjects else subjects
    metadata = {**kept(row, "llama8b_solve_rate"), **({"subject": str(subject)} if subject else {})}
    return {"domain": "math", "prompt": row["problem"], "answer": answer_text(row["answer"], "answer"), "metadata": metadata}


def _synthetic(row: Row) -> Row:
    """SYNTHETIC-1 and -2: what a task needs is in `verification_info`."""
    task = str(row.get("task_type") or "")
    info = _literal(row["verification_info"], "verification_info")
    if not isinstance(info, dict):
        raise RecordError("'verification_info' is not an object")
    common = {"prompt": row["prompt"], "metadata": kept(row, "task_type", "in_source_id")}
    if row.get("problem_id") is not None:
        common["id"] = str(row["problem_id"])
    truth = info.get("ground_truth", info.get("answer"))
    if "test_cases" in info:
        tests = [_synthetic_test(test) for test in _list(info["test_cases"], "test_cases")]
        names = {test.get("fn_name") for test in _list(info["test_cases"], "test_cases") if isinstance(test, dict)} - {
            None,
            "",
        }
        answer: dict[str, Any] = {"tests": tests}
        if names:
            answer = {"fn_name": sorted(map(str, names))[0], "tests": [_call(test) for test in tests]}
        language = _LANGUAGES.get(str(info.get("language") or "").lower())
        return {"domain": "code", **common, "answer": {**answer, **({"language": language} if language else {})}}
    if truth is None:
        raise Lacking("unsupported_task", f"task {task or 'of no type'} has no answer that a verifier can compare")
    domain = "math" if "math" in task or not task else "science" if "science" in task or "stem" in task else "math"
    return {"domain": domain, **common, "answer": answer_text(truth, "verification_info.ground_truth")}


def _synthetic_test(test: Any) -> dict[str, Any]:
    if not isinstance(test, dict) or "input" not in test or "output" not in test:
        raise RecordError("'verification_info.test_cases' holds a test without input or output")
    return {"input": test["input"], "output": test["output"]}


def _call(test: dict[str, Any]) -> dict[str, Any]:
    given, expected = _literal(test["input"], "input"), test["output"]
    expected = _literal(expected, "output") if isinstance(expected, str) else expected
    return {"args": given if isinstance(given, list) else [given], "expected": expected}


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise RecordError(f"'{name}' is {kind_of(value)}: expected a list")
    return value


def _codeforces(row: Row) -> Row:
    """open-r1/codeforces: official tests, and a checker where several outputs are right. What works on files or in a
    dialogue cannot be verified here."""
    try:
        answer = codeforces_answer(row, row.get("official_tests") or row.get("examples") or [])
    except Unsupported as error:
        raise Lacking("unsupported_task", f"of the problems {error}") from None
    except UserError as error:
        raise RecordError(str(error)) from None
    parts = [row.get("title"), row.get("description")]
    for name, title in (("input_format", "Input"), ("output_format", "Output"), ("note", "Note")):
        if str(row.get(name) or "").strip():
            parts.append(f"{title}\n{str(row[name]).strip()}")
    for example in row.get("examples") or []:
        if isinstance(example, dict):
            parts.append(f"Example input:\n{example.get('input')}\nExample output:\n{example.get('output')}")
    text = "\n\n".join(str(part).strip() for part in parts if part)
    names = ("contest_id", "contest_start", "rating", "tags", "official_tests_complete")
    return {"domain": "code", "id": str(row["id"]), "prompt": with_starter(text, None), "answer": answer,
            "metadata": kept(row, *names)}  # fmt: skip


def _reasoning_gym(row: Row) -> Row:
    from megatron_ring.rewards.logic.reasoning_gym import convert

    metadata = _literal(row["metadata"], "metadata")
    task = row.get("source_dataset") or (metadata.get("source_dataset") if isinstance(metadata, dict) else None)
    try:
        return convert(str(task), {**row, "metadata": metadata})
    except UserError as error:
        raise Lacking("unsupported_task", str(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"'metadata' lacks what the task {task} needs: {error}") from None


def _aops(row: Row) -> Row:
    r"""Dumps of forums and of worked solutions: the answer is the box or the `####` of the last solution that has one."""
    name = "problem" if row.get("problem") is not None else "question"
    given = row.get("solutions") if row.get("solutions") is not None else row.get("solution", row.get("rewritten_answer"))
    texts = [text for text in (given if isinstance(given, list) else [given]) if isinstance(text, str)]
    answers = [answer for answer in (last_boxed(text) or marked_answer(text) for text in texts) if answer]
    if not answers:
        raise Lacking("missing_answer", "no solution ends in a box or ####")
    metadata = kept(row, "level", "type", "category", "url", "post_id", "topic_id")
    return {"domain": "math", "prompt": row[name], "answer": answers[0], "metadata": metadata}


def _problem_expected(row: Row) -> Row:
    """OpenMathReasoning: `problem`, `expected_answer`, a generated solution."""
    return {"domain": "math", "prompt": row["problem"], "answer": answer_text(row["expected_answer"], "expected_answer"),
            "metadata": kept(row, "problem_type", "problem_source", "pass_rate_72b_tir")}  # fmt: skip


def _is_gym(row: Row) -> bool:
    metadata = row["metadata"]
    return row.get("source_dataset") is not None or "source_dataset" in str(metadata)


MORE_FORMS: tuple[Form, ...] = (
    Form("open-r1/codeforces", columns("id", "description", "official_tests"), _codeforces),
    Form("SYNTHETIC-1 or -2 (prompt, verification_info)", columns("prompt", "verification_info"), _synthetic),
    Form("reasoning-gym", columns("question", "answer", "metadata"), _reasoning_gym, holds=_is_gym),
    Form("OpenMathReasoning", columns("problem", "expected_answer"), _problem_expected, columns("answer")),
    Form("BigMath", columns("problem", "answer", "domain"), _bigmath, columns("prompt"),
         holds=lambda row: isinstance(row["domain"], list) or "llama8b_solve_rate" in row or "source" in row),
)  # fmt: skip
LAST_FORMS: tuple[Form, ...] = (
    Form("AoPS (problem, solutions)", columns("problem", "solutions"), _aops, columns("answer")),
    Form("AoPS (question, solutions)", columns("question", "solutions"), _aops, columns("answer", "input_output")),
    Form("AoPS (problem, rewritten_answer)", columns("problem", "rewritten_answer"), _aops, columns("answer")),
)
ALL_FORMS = {form.name: form for form in (*MORE_FORMS, *PROMPT_FORMS, *LAST_FORMS)}


def form_of(row: Mapping[str, Any]) -> Form | None:
    """The form that a row is of."""
    lowered = small(row)
    first = next((form for form in MORE_FORMS if form.fits(lowered)), None)
    return first or prompt_form(row) or next((form for form in LAST_FORMS if form.fits(lowered)), None)


def file_form(rows: Iterable[Mapping[str, Any]]) -> Form | None:
    """The form that most of these rows are of, the first of equals: a raw dump may begin with a damaged row."""
    found: dict[str, int] = {}
    for row in rows:
        form = form_of(row)
        if form is not None:
            found[form.name] = found.get(form.name, 0) + 1
    return ALL_FORMS[max(found, key=lambda name: found[name])] if found else None


# What is worth selecting and cleansing by, wherever a file has it.
_KINDS = ("question_type", "problem_type", "problem_is_valid", "solution_is_valid", "answer_type", "is_multiple_choice",
          "options", "choices", "level", "difficulty", "subject", "type", "category", "year", "rating", "tags", "license",
          "language", "solve_rate", "pass_rate", "llama8b_solve_rate", "finish_reason")  # fmt: skip
_LONG = 500  # characters of a value that is kept


def extras(row: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a row that go into `metadata`, with its own source as `original_source`."""
    lowered = small(row)
    found = {name: lowered[name] for name in _KINDS if _is_short(lowered.get(name))}
    origin = lowered.get("source", lowered.get("data_source"))
    if isinstance(origin, str) and origin:
        found["original_source"] = origin
    inner = lowered.get("extra_info")
    if isinstance(inner, dict) and _is_short(inner.get("model_difficulty")):
        found["model_difficulty"] = inner["model_difficulty"]
    return found


def _is_short(value: Any) -> bool:
    return value is not None and value not in ([], {}, "") and len(str(value)) <= _LONG


def solutions_of(row: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """Solutions that a row brings: {text, language}; the language is None where it is not said, or for a worked solution in
    words."""
    lowered = small(row)
    given = lowered.get("solutions")
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            given = [given]
    if isinstance(given, dict):  # CodeContests: parallel lists, languages as numbers or names
        texts, names = given.get("solution"), given.get("language")
        if not isinstance(texts, list) or not isinstance(names, list):
            return []
        return [
            {"text": text, "language": language}
            for text, name in zip(texts, names, strict=False)
            if isinstance(text, str) and (language := _codecontests_language(name)) is not None
        ]
    if isinstance(given, list) and any(isinstance(text, str) for text in given):
        return [{"text": text, "language": None} for text in given if isinstance(text, str) and text.strip()]
    if lowered.get("canonical_solution") is not None and isinstance(lowered.get("prompt"), str):
        return [{"text": f"{lowered['prompt']}{lowered['canonical_solution']}", "language": "python"}]
    names_of_one = ("gold_standard_solution", "solution", "code", "generated_solution")
    for name in names_of_one:
        if isinstance(lowered.get(name), str) and lowered[name].strip():
            return [{"text": lowered[name], "language": None}]
    answer = lowered.get("answer")
    if isinstance(answer, str) and "####" in answer:
        return [{"text": answer, "language": None}]
    return []


def _codecontests_language(name: Any) -> str | None:
    """1 is Python 2, which is not run here."""
    if isinstance(name, int):
        return {2: "cpp", 3: "python", 4: "java"}.get(name)
    return {"PYTHON3": "python", "CPP": "cpp", "JAVA": "java"}.get(str(name))
