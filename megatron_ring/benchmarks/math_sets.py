r"""Mathematics: a problem, and an answer in a box. AIME and its like, MATH-500, GSM8K, CNMO, LiveMathBench, Minerva, and
plain files of `problem` and `answer` (HMMT)."""

from __future__ import annotations

import re

from megatron_ring.benchmarks.problem import Problem, Row
from megatron_ring.benchmarks.rows import LeftOut, RowError, as_text, first, id_of, text
from megatron_ring.rewards.boxed import last_boxed, marked_answer

PROBLEM = ("problem", "question", "prompt", "origin_prompt", "query", "input", "content")
ANSWER = ("answer", "gold_answer", "label", "target", "final_answer", "expected_answer", "reward_model.ground_truth", "gold")
IDS = ("unique_id", "id", "problem_idx", "idx", "uuid", "question_id")
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


def asked(question: str) -> str:
    """The prompt of a problem in mathematics."""
    return f"{question}\n\n{BOXED}"


def answer_of(row: Row) -> str:
    """The final answer of a row: its column, behind `####`, or the last box of a worked solution."""
    value = first(row, *ANSWER)
    if value is None:
        solution = first(row, "solution")
        found = last_boxed(solution) if isinstance(solution, str) else None
        if found is None:
            raise RowError(f"the column '{ANSWER[0]}' (or {', '.join(ANSWER[1:])}) is missing, and no box in 'solution'")
        return found.strip()
    written = as_text(value, ANSWER[0])
    found = last_boxed(written)
    return (found if found is not None else marked_answer(written) or written).strip()


def plain(row: Row) -> Problem:
    """Any file of problems and answers."""
    category = first(row, "subject", "type", "question_type", "category", "level")
    return Problem(
        id_of(row, *IDS), asked(text(row, *PROBLEM)), answer_of(row), "math",
        "" if category is None else str(category),
    )  # fmt: skip


def integer(row: Row) -> Problem:
    """AIME: the answer is a whole number from 0 to 999, which may be written 033, 33.0, 33 or $33$."""
    problem = plain(row)
    written = re.sub(r"[\s$,]", "", problem.answer)
    if not re.fullmatch(r"\d{1,6}(?:\.0*)?", written, re.ASCII) or int(written.split(".")[0]) > 999:
        raise RowError(f"the answer {problem.answer[:40]!r} is no whole number from 0 to 999, as answers of AIME are")
    return Problem(problem.id, problem.prompt, str(int(written.split(".")[0])), "math", problem.category)


def live_math(row: Row) -> Problem:
    """LiveMathBench and its CNMO split."""
    kind = first(row, "question_type")
    of_kind = f"The following is a problem of the type: {kind}.\n\n" if kind else ""
    return Problem(id_of(row, *IDS), asked(of_kind + text(row, *PROBLEM)), answer_of(row), "math", str(kind or ""))


def minerva(row: Row) -> Problem:
    """MinervaMath: questions of science courses; answers may carry a unit."""
    problem = plain(row)
    return Problem(problem.id, problem.prompt, problem.answer, "science", problem.category)


def phybench(row: Row) -> Problem:
    """PHYBench: one expression. Most public rows are without an answer."""
    if first(row, "answer") is None:
        raise LeftOut("without an answer")
    answer = as_text(row["answer"], "answer")
    answer = last_boxed(answer) or answer.replace("$$", "").replace("\\[", "").replace("\\]", "").strip("$ \n")
    return Problem(id_of(row, "id"), asked(text(row, "content", "question")), answer, "math", str(row.get("tag") or ""))
