"""IFEval, which verifiers decide; and the sets that a language model has to judge: SimpleQA, AlignBench, FoFo,
Arena-Hard."""

from __future__ import annotations

from megatron_ring.benchmarks.alignbench import dimensions_of
from megatron_ring.benchmarks.problem import Problem, Row
from megatron_ring.benchmarks.rows import RowError, first, id_of, need, parsed, text
from megatron_ring.errors import UserError
from megatron_ring.rewards.instructions.scoring import read_task


def ifeval(row: Row) -> Problem:
    """IFEval. A copy that carries every argument has None for those that an instruction lacks; None alone is dropped: 0 and
    an empty text are arguments."""
    kwargs, names = parsed(need(row, "kwargs"), "kwargs"), parsed(need(row, "instruction_id_list"), "instruction_id_list")
    if not isinstance(kwargs, list) or not all(isinstance(given, dict | None) for given in kwargs):
        raise RowError("the column 'kwargs' is no list of objects")
    given = [{name: value for name, value in (one or {}).items() if value is not None} for one in kwargs]
    answer = {"instruction_id_list": names, "kwargs": given}
    try:
        read_task(answer)
    except UserError as error:
        raise RowError(str(error)) from None
    prompt = need(row, "prompt")
    if not isinstance(prompt, str):
        raise RowError("the column 'prompt' is no text")
    return Problem(id_of(row, "key", "id"), prompt, answer, "instructions", "", {"loose": {**answer, "mode": "loose"}})


def simple_qa(row: Row) -> Problem:
    """SimpleQA and SimpleQA-Verified. `metadata` is a Python literal in the public file."""
    metadata = parsed(first(row, "metadata") or {}, "metadata")
    topic = metadata.get("topic", "") if isinstance(metadata, dict) else ""
    prompt = f"Answer the question.\n\n{text(row, 'problem', 'question')}"
    return Problem(
        id_of(row, "original_index", "id"), prompt, text(row, "answer"), "", str(topic or first(row, "topic") or "")
    )


def align_bench(row: Row) -> Problem:
    """AlignBench: a question in Chinese with a reference. Its subcategory decides the dimensions that are graded."""
    metadata = {"dimensions": dimensions_of(str(first(row, "subcategory") or ""))}
    question = text(row, "question")
    return Problem(id_of(row, "question_id"), question, text(row, "reference"), "", text(row, "category"), {}, metadata)


def fofo(row: Row) -> Problem:
    """FoFo: an instruction whose answer must keep a format. The reference is the criterion that a judge checks."""
    metadata = {"format": first(row, "format"), "format_type": first(row, "format_type")}
    named = f" The format is {metadata['format']}." if metadata["format"] else ""
    criterion = (
        "The answer keeps the format that the request demands, in every detail: structure, order, names, signs, and "
        f"whatever else the request fixes.{named} Whether its content is true or good is no part of this."
    )
    return Problem(id_of(row, "id"), text(row, "instruction"), criterion, "", str(first(row, "domain") or ""), {}, metadata)


def arena_hard(row: Row) -> Problem:
    """Arena-Hard v0.1 and v2.0; v0.1 keeps its prompt in `turns`."""
    turns = parsed(row["turns"], "turns") if row.get("turns") else None
    prompt = turns[0].get("content") if isinstance(turns, list) and turns and isinstance(turns[0], dict) else None
    category = str(first(row, "category", "subcategory") or "")
    return Problem(id_of(row, "uid", "question_id"), prompt or text(row, "prompt"), "", "", category)
