r"""Problems of the package reasoning-gym as rows of a prompt file, judged by our verifiers and never by its own.

Its scorers are not used: some execute what they are given (countdown, puzzle24), some give partial credit. Taken are tasks
whose answer is unique (`EXACT`, all of which its own scorer compares as text), and those that a game of ours verifies by its
rules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.logic.countdown import RULES
from megatron_ring.rewards.logic.expression import parse_expression
from megatron_ring.rewards.logic.game import Violation

# One right answer, which is text.
# fmt: off
EXACT = (
    "acre", "aiw", "arc_1d", "base_conversion", "basic_arithmetic", "bf", "binary_alternation", "caesar_cipher",
    "count_bits", "count_primes", "course_schedule", "gcd", "isomorphic_strings", "largest_island", "lcm",
    "leg_counting", "letter_counting", "list_functions", "mahjong_puzzle", "maze", "modulo_grid",
    "number_filtering", "number_sequence", "ransom_note", "rotate_matrix", "rotten_oranges", "simple_equations",
    "simple_geometry", "string_manipulation", "string_splitting", "string_synthesis", "syllogism",
    "word_sequence_reversal",
)
# fmt: on
_BOXED = "Give the expression alone in \\boxed{}, of the form \\boxed{(a+b)*c-d}, with numbers for letters."
_FENCED = (
    "End with the answer alone in a block fenced by lines of three backticks, nothing else in the block. Only the last "
    "fenced block counts."
)
TASKS = (*EXACT, "countdown", "puzzle24", "sudoku", "mini_sudoku")


def convert(task: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """One item of a task (`question`, `answer`, `metadata`) as a row of a prompt file. Raises `UserError` for others."""
    metadata = item["metadata"]
    if task in EXACT:
        domain, answer, closing = "logic/exact", {"text": item["answer"]}, _FENCED
    elif task == "countdown":
        numbers = {"numbers": list(metadata["numbers"]), "target": metadata["target"], "use_all": True}
        domain, answer, closing = "logic/countdown", numbers, f"{RULES}\n{_BOXED}"
    elif task == "puzzle24":
        closing = f"Use each of the four numbers exactly once. {RULES}\n{_BOXED}"
        domain, answer = "logic/twenty_four", {"numbers": list(metadata["numbers"])}
    elif task in ("sudoku", "mini_sudoku"):
        givens = ["".join(str(cell) if cell else "." for cell in row) for row in metadata["puzzle"]]
        domain, answer, closing = "logic/sudoku", {"givens": givens}, _FENCED
    else:
        raise UserError(f"unknown reasoning-gym task {task!r}: use some of {', '.join(TASKS)}")
    prompt = f"{item['question'].strip()}\n\n{closing}"
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()
    witness = {"witness": item["answer"]}
    if closing.endswith(_BOXED):
        try:
            parse_expression(item["answer"])
        except Violation:  # such as a unary minus, which the rules that we add forbid
            witness = {}
    return {
        "id": f"reasoning-gym-{task}-{digest}",
        "domain": domain,
        "prompt": prompt,
        "answer": answer,
        "metadata": {"source": "reasoning-gym", "task": task, **witness},
    }
