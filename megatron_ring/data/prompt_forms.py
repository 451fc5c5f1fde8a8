"""Public files of prompts as they are downloaded, read as rows of the contract.

What a form lacks (`id`, `domain`) is filled in: the number of the row, the domain that the data set is of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megatron_ring.data.forms import (
    Form,
    Row,
    UnansweredError,
    answer_text,
    columns,
    first_fitting,
    id_of,
    kept,
    parsed,
)
from megatron_ring.data.messages import RecordError, json_of
from megatron_ring.errors import UserError
from megatron_ring.rewards.boxed import last_boxed, marked_answer
from megatron_ring.rewards.code_formats import check_tests


def prompt_form(row: Mapping[str, Any]) -> Form | None:
    """The form of a prompt file whose first row this is; None where it is of none."""
    return first_fitting(PROMPT_FORMS, row)


def _tests(answer: Row) -> Row:
    """Tests of a code problem. Raises `UnansweredError` where no solution could be told right by them."""
    try:
        check_tests(answer)
    except UserError as error:
        raise UnansweredError(str(error)) from None
    return answer


MATH_SOURCES = ("gsm8k", "math", "aime", "amc", "dapo", "numina", "olympiad", "deepscaler", "minerva", "hmmt", "aops")
CODE_SOURCES = ("code", "taco", "apps", "leetcode", "livecodebench", "humaneval", "mbpp")


def _verl(row: Row) -> Row:
    """verl's parquet rows, DAPO-Math and Skywork-OR1 among them."""
    model = parsed(row["reward_model"], "reward_model")
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
        found = parsed(truth, "reward_model.ground_truth")
        truth = {"input_output": _kept_long(truth, found)} if isinstance(found, dict) and "inputs" in found else found
        truth = _tests(truth) if isinstance(truth, dict) else truth
    elif domain == "math":
        truth = answer_text(_listed(truth), "reward_model.ground_truth")
    known = {"domain": domain} if domain else {}
    metadata = {"data_source": row["data_source"]} if row.get("data_source") is not None else {}
    prompt = json_of(row["prompt"], "[{")
    return {**known, **id_of(extra or {}, "index"), "prompt": prompt, "answer": truth, "metadata": metadata}


def _kept_long(text: Any, content: Any) -> Any:
    """JSON text as it is where it holds a whole number of more digits than Python's own reader takes; else its content."""
    return text if isinstance(text, str) and _LONG_NUMBER.search(text) else content


_LONG_NUMBER = re.compile(r"[0-9]{4000}")


def _listed(truth: Any) -> Any:
    """Skywork-OR1 writes a list of one as JSON text."""
    if isinstance(truth, str) and truth.startswith('["'):
        found = parsed(truth, "reward_model.ground_truth")
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
    """DeepScaleR, MATH-500, AIME, BigMath: a problem and its final answer. NuminaMath says `proof` where there is none."""
    answer = answer_text(row["answer"], "answer")
    if answer.strip().lower() in ("proof", "notfound"):
        raise UnansweredError(f"'answer' is {answer.strip()!r}")
    return {
        "domain": "math",
        **id_of(row, "unique_id", "id", "problem_idx"),
        "prompt": row["problem"],
        "answer": answer,
        "metadata": kept(row, "level", "subject", "type", "source", "year", "url"),
    }


def _problem_solution(row: Row) -> Row:
    """MATH and NuminaMath: the final answer is the last box of the worked solution."""
    answer = last_boxed(row["solution"]) if isinstance(row["solution"], str) else None
    if answer is None:
        raise UnansweredError("'solution' has no \\boxed{} answer")
    return {"domain": "math", "prompt": row["problem"], "answer": answer, "metadata": kept(row, "level", "type", "source")}


_WHOLE = re.compile(r"\s*-?[0-9]+\s*")


def _is_whole(answer: Any) -> bool:
    """Whether an answer is a whole number, also as text: AIME's and AMC's are."""
    if isinstance(answer, str):
        return _WHOLE.fullmatch(answer) is not None
    return not isinstance(answer, bool) and (isinstance(answer, int) or (isinstance(answer, float) and answer.is_integer()))


def _question_number(row: Row) -> Row:
    if not _is_whole(row["answer"]):
        raise RecordError("'answer' is not a whole number, in a file whose first one is")
    return _problem_answer({**row, "problem": row["question"]})


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
    if row.get("input_output") in (None, "", {}, "{}"):
        raise UnansweredError("'input_output' is empty: the problem has no tests")
    content = parsed(row["input_output"], "input_output")
    starter = row.get("starter_code") if isinstance(content, dict) and content.get("fn_name") else None
    return {
        "domain": "code",
        **id_of(row, "problem_id", "id"),
        "prompt": with_starter(row["question"], starter),
        "answer": _tests({"input_output": _kept_long(row["input_output"], content)}),
        "metadata": kept(row, "difficulty", "source", "url", "tags"),
    }


def _livecodebench(row: Row) -> Row:
    names = ("public_test_cases", "private_test_cases", "metadata")
    return {
        "domain": "code",
        **id_of(row, "question_id"),
        "prompt": with_starter(row["question_content"], row.get("starter_code")),
        "answer": _tests({"format": "livecodebench", **kept(row, *names)}),
        "metadata": kept(row, "platform", "contest_id", "contest_date", "difficulty", "question_title"),
    }


def _codecontests(row: Row) -> Row:
    names = ("public_tests", "private_tests", "generated_tests", "time_limit")
    return {
        "domain": "code",
        **id_of(row, "name"),
        "prompt": with_starter(row["description"], None),
        "answer": _tests({"format": "codecontests", **kept(row, *names)}),
        "metadata": kept(row, "source", "difficulty", "cf_rating"),
    }


def _humaneval(row: Row) -> Row:
    return {
        "domain": "code",
        **id_of(row, "task_id"),
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
        **id_of(row, "task_id"),
        "prompt": f"{text}\nYour code must pass these tests:\n```python\n{shown}\n```",
        "answer": answer,
    }


def _ifeval(row: Row) -> Row:
    """The published file, or its copy in which every instruction has all arguments, those it lacks as null."""
    kwargs = parsed(row["kwargs"], "kwargs")
    if not isinstance(kwargs, list) or not all(isinstance(given, dict | None) for given in kwargs):
        raise RecordError("'kwargs' is not a list of objects")
    given = [{name: value for name, value in (one or {}).items() if value is not None} for one in kwargs]
    answer = {"instruction_id_list": row["instruction_id_list"], "kwargs": given}
    return {"domain": "instructions", **id_of(row, "key", "id"), "prompt": row["prompt"], "answer": answer}


CHOICES = columns("choices", "options")  # a question of which is another thing without them
PROMPT_FORMS: tuple[Form, ...] = (
    Form("verl (prompt, reward_model.ground_truth)", columns("prompt", "reward_model"), _verl),
    Form("LiveCodeBench", columns("question_content", "public_test_cases"), _livecodebench),
    Form("CodeContests", columns("description", "public_tests"), _codecontests),
    Form("HumanEval", columns("prompt", "test", "entry_point"), _humaneval),
    Form("MBPP", columns("test_list"), _mbpp, holds=lambda row: "text" in row or "prompt" in row),
    Form("TACO or APPS (question, input_output)", columns("question", "input_output"), _apps),
    Form("IFEval", columns("prompt", "instruction_id_list", "kwargs"), _ifeval),
    Form("GSM8K (question, answer behind ####)", columns("question", "answer"), _gsm8k, CHOICES,
         holds=lambda row: isinstance(row["answer"], str) and "####" in row["answer"]),
    Form("math (question, a whole number in answer)", columns("question", "answer"), _question_number,
         columns("domain") | CHOICES,
         holds=lambda row: _is_whole(row["answer"])),
    Form("math (problem, answer)", columns("problem", "answer"), _problem_answer, CHOICES,
         holds=lambda row: not isinstance(row.get("domain"), str)),
    Form("MATH (problem, boxed answer in solution)", columns("problem", "solution"), _problem_solution,
         columns("answer") | CHOICES),
    Form("math (prompt of messages, label)", columns("prompt", "label"), _messages_label, columns("answer"),
         holds=lambda row: isinstance(row["prompt"], list)),
    Form("math (origin_prompt, gold_answer)", columns("origin_prompt", "gold_answer"), _origin_prompt),
)  # fmt: skip
