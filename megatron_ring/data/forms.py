"""Public files of prompts as they are downloaded, recognised by their columns and read as rows of the contract.

A form is recognised from the first row of a file, whatever the capitals of its column names; all further rows must be of it.
What a form lacks (`id`, `domain`) is filled in: the number of the row, the domain that the data set is of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_ring.data.messages import RecordError
from megatron_ring.rewards.boxed import last_boxed, marked_answer

Row = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """One form of a public file.

    Attributes:
        name: what the user is told.
        columns: names that a row must have, in small letters.
        absent: names that it must not have.
        convert: from a row, its names in small letters, to one of the contract; may lack `id` and `domain`.
        holds: what else its first row must show.
    """

    name: str
    columns: frozenset[str]
    convert: Callable[[Row], Row]
    absent: frozenset[str] = frozenset()
    holds: Callable[[Row], bool] = lambda row: True

    def fits(self, row: Row) -> bool:
        """Whether a row (names in small letters) is of this form."""
        given = {name for name, value in row.items() if value is not None}
        return self.columns <= given and not self.absent & given and self.holds(row)


def small(row: Mapping[str, Any]) -> Row:
    """The row with its names in small letters; of two that become the same the first stays."""
    lowered: Row = {}
    for name, value in row.items():
        lowered.setdefault(str(name).strip().lower(), value)
    return lowered


def prompt_form(row: Mapping[str, Any]) -> Form | None:
    """The form of a prompt file whose first row this is; None where it is of none."""
    return first_fitting(PROMPT_FORMS, row)


def first_fitting(forms: tuple[Form, ...], row: Mapping[str, Any]) -> Form | None:
    """The first of these forms that a row is of."""
    lowered = small(row)
    return next((form for form in forms if form.fits(lowered)), None)


def columns(*names: str) -> frozenset[str]:
    """Names of columns."""
    return frozenset(names)


def answer_text(value: Any, name: str) -> str:
    """An answer as text: numbers as they are written, a list of one for its item."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RecordError(f"'{name}' is {type(value).__name__}: expected text or a number")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parsed(value: Any, name: str) -> Any:
    """A column that may be JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RecordError(f"'{name}' is not JSON") from None


def kept(row: Row, *names: str) -> Row:
    """Columns for the metadata."""
    return {name: row[name] for name in names if row.get(name) is not None}


def _id_of(row: Row, *names: str) -> Row:
    """The id of a row, where it has one of these columns."""
    value = next((row[name] for name in names if row.get(name) not in (None, "")), None)
    return {} if value is None else {"id": value if isinstance(value, str) else answer_text(value, "id")}


MATH_SOURCES = ("gsm8k", "math", "aime", "amc", "dapo", "numina", "olympiad", "deepscaler", "minerva", "hmmt", "aops")
CODE_SOURCES = ("code", "taco", "apps", "leetcode", "livecodebench", "humaneval", "mbpp")


def _verl(row: Row) -> Row:
    """verl's parquet rows, DAPO-Math and Skywork-OR1 among them."""
    model = row["reward_model"]
    if not isinstance(model, dict) or model.get("ground_truth") is None:
        raise RecordError("'reward_model' has no 'ground_truth'")
    extra = row.get("extra_info") if isinstance(row.get("extra_info"), dict) else {}
    ability, source = str(row.get("ability") or "").lower(), str(row.get("data_source") or "").lower()
    domain = {"math": "math", "code": "code", "coding": "code"}.get(ability)
    if domain is None and any(name in source for name in CODE_SOURCES):
        domain = "code"
    if domain is None and any(name in source for name in MATH_SOURCES):
        domain = "math"
    truth = model["ground_truth"]
    if domain == "code":
        found = _parsed(truth, "reward_model.ground_truth")
        truth = {"input_output": found} if isinstance(found, dict) and "inputs" in found else found
    elif domain == "math":
        truth = answer_text(_listed(truth), "reward_model.ground_truth")
    known = {"domain": domain} if domain else {}
    metadata = {"data_source": row["data_source"]} if row.get("data_source") is not None else {}
    return {**known, **_id_of(extra or {}, "index"), "prompt": row["prompt"], "answer": truth, "metadata": metadata}


def _listed(truth: Any) -> Any:
    """Skywork-OR1 writes a list of one as JSON text."""
    if isinstance(truth, str) and truth.startswith('["'):
        found = _parsed(truth, "reward_model.ground_truth")
        return found[0] if isinstance(found, list) and len(found) == 1 else truth
    return truth


def _gsm8k(row: Row) -> Row:
    return {"domain": "math", "prompt": row["question"], "answer": _marked(row["answer"])}


def _marked(answer: Any) -> str:
    found = marked_answer(answer) if isinstance(answer, str) else None
    if found is None:
        raise RecordError("'answer' has no final answer behind ####")
    return found


def _problem_answer(row: Row) -> Row:
    """DeepScaleR, MATH-500, AIME, BigMath: a problem and its final answer."""
    return {
        "domain": "math",
        **_id_of(row, "unique_id", "id", "problem_idx"),
        "prompt": row["problem"],
        "answer": answer_text(row["answer"], "answer"),
        "metadata": kept(row, "level", "subject", "type", "source", "year", "url"),
    }


def _problem_solution(row: Row) -> Row:
    """MATH and NuminaMath: the final answer is the last box of the worked solution."""
    answer = last_boxed(row["solution"]) if isinstance(row["solution"], str) else None
    if answer is None:
        raise RecordError("'solution' has no \\boxed{} answer")
    return {"domain": "math", "prompt": row["problem"], "answer": answer, "metadata": kept(row, "level", "type", "source")}


def _messages_label(row: Row) -> Row:
    """slime's rows: a prompt of messages, the answer in `label`."""
    return {"domain": "math", "prompt": row["prompt"], "answer": answer_text(row["label"], "label")}


def _origin_prompt(row: Row) -> Row:
    return {"domain": "math", "prompt": row["origin_prompt"], "answer": answer_text(row["gold_answer"], "gold_answer")}


def with_starter(text: Any, code: Any) -> str:
    """A code problem with how its solution must begin, or what it must do."""
    if isinstance(code, str) and code.strip():
        return f"{text}\n\nUse this starter code:\n```python\n{code.strip()}\n```"
    return f"{text}\n\nRead from standard input and write to standard output."


def _apps(row: Row) -> Row:
    """TACO and APPS."""
    if row.get("input_output") in (None, ""):
        raise RecordError("'input_output' is empty: the problem has no tests")
    content = _parsed(row["input_output"], "input_output")
    starter = row.get("starter_code") if isinstance(content, dict) and content.get("fn_name") else None
    return {
        "domain": "code",
        **_id_of(row, "problem_id", "id"),
        "prompt": with_starter(row["question"], starter),
        "answer": {"input_output": content},
        "metadata": kept(row, "difficulty", "source", "url", "tags"),
    }


def _livecodebench(row: Row) -> Row:
    names = ("public_test_cases", "private_test_cases", "metadata")
    return {
        "domain": "code",
        **_id_of(row, "question_id"),
        "prompt": with_starter(row["question_content"], row.get("starter_code")),
        "answer": {"format": "livecodebench", **kept(row, *names)},
        "metadata": kept(row, "platform", "contest_id", "contest_date", "difficulty", "question_title"),
    }


def _codecontests(row: Row) -> Row:
    names = ("public_tests", "private_tests", "generated_tests", "time_limit")
    return {
        "domain": "code",
        **_id_of(row, "name"),
        "prompt": with_starter(row["description"], None),
        "answer": {"format": "codecontests", **kept(row, *names)},
        "metadata": kept(row, "source", "difficulty", "cf_rating"),
    }


def _humaneval(row: Row) -> Row:
    return {
        "domain": "code",
        **_id_of(row, "task_id"),
        "prompt": f"Complete this function. Answer with all of it in a code block.\n```python\n{row['prompt']}\n```",
        "answer": {"format": "humaneval", **kept(row, "prompt", "test", "entry_point")},
    }


def _mbpp(row: Row) -> Row:
    text = row.get("text") or row.get("prompt")
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise RecordError("'test_list' is not a list of assertions")
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    answer = {"tests": "\n".join(tests), **({"setup": setup} if setup else {})}
    shown = "\n".join(tests)
    return {
        "domain": "code",
        **_id_of(row, "task_id"),
        "prompt": f"{text}\nYour code must pass these tests:\n```python\n{shown}\n```",
        "answer": answer,
    }


def _ifeval(row: Row) -> Row:
    """The published file, or its copy in which every instruction has all arguments, those it lacks as null."""
    kwargs = _parsed(row["kwargs"], "kwargs")
    if not isinstance(kwargs, list) or not all(isinstance(given, dict | None) for given in kwargs):
        raise RecordError("'kwargs' is not a list of objects")
    given = [{name: value for name, value in (one or {}).items() if value is not None} for one in kwargs]
    answer = {"instruction_id_list": row["instruction_id_list"], "kwargs": given}
    return {"domain": "instructions", **_id_of(row, "key", "id"), "prompt": row["prompt"], "answer": answer}


PROMPT_FORMS: tuple[Form, ...] = (
    Form("verl (prompt, reward_model.ground_truth)", columns("prompt", "reward_model"), _verl),
    Form("LiveCodeBench", columns("question_content", "public_test_cases"), _livecodebench),
    Form("CodeContests", columns("description", "public_tests"), _codecontests),
    Form("HumanEval", columns("prompt", "test", "entry_point"), _humaneval),
    Form("MBPP", columns("test_list"), _mbpp, holds=lambda row: "text" in row or "prompt" in row),
    Form("TACO or APPS (question, input_output)", columns("question", "input_output"), _apps),
    Form("IFEval", columns("prompt", "instruction_id_list", "kwargs"), _ifeval),
    Form("GSM8K (question, answer behind ####)", columns("question", "answer"), _gsm8k,
         holds=lambda row: isinstance(row["answer"], str) and "####" in row["answer"]),
    Form("math (problem, answer)", columns("problem", "answer"), _problem_answer, columns("domain")),
    Form("MATH (problem, boxed answer in solution)", columns("problem", "solution"), _problem_solution, columns("answer")),
    Form("math (prompt of messages, label)", columns("prompt", "label"), _messages_label, columns("answer"),
         holds=lambda row: isinstance(row["prompt"], list)),
    Form("math (origin_prompt, gold_answer)", columns("origin_prompt", "gold_answer"), _origin_prompt),
)  # fmt: skip
