"""Planted preferences: one flaw each, as named, the same for the same seed; and the tool that writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from megatron_ring.errors import UserError
from megatron_ring.toy.preferences import FLAWS, PLAIN, Solution, planted_pairs
from megatron_ring.toy.problems import make_splits
from tests.processes import run

SOLUTIONS = [Solution(problem.prompt, problem.response) for problem in make_splits(0, 200, 1, 1).train]


def test_each_flaw_is_what_it_is_called() -> None:
    pairs = list(planted_pairs(SOLUTIONS, 3, FLAWS))
    assert pairs == list(planted_pairs(SOLUTIONS, 3, FLAWS)) != list(planted_pairs(SOLUTIONS, 4, FLAWS))
    for number, pair in enumerate(pairs):
        assert pair.flaw == FLAWS[number % len(FLAWS)] and pair.chosen == SOLUTIONS[number].response != pair.rejected
        box = pair.chosen[pair.chosen.rindex("\\boxed{") :]
        if pair.flaw == "format":
            assert pair.rejected == pair.chosen.replace(box, box[7:-1])
        elif pair.flaw == "repetition":
            assert set(pair.rejected.split("\n")) == set(pair.chosen.split("\n")) and len(pair.rejected) > len(pair.chosen)
        elif pair.flaw == "truncated":
            assert pair.chosen.startswith(pair.rejected) and "\\boxed" not in pair.rejected
        elif pair.flaw == "answer":
            assert len(pair.rejected) == len(pair.chosen) and pair.rejected[: -len(box)] == pair.chosen[: -len(box)]
        else:
            assert pair.rejected in {solution.response for solution in SOLUTIONS}
    assert {pair.flaw for pair in planted_pairs(SOLUTIONS, 3)} == set(PLAIN)


def test_what_cannot_be_planted() -> None:
    for solutions, flaws, said in (
        (SOLUTIONS, ("rude",), "unknown flaw 'rude'"),
        (SOLUTIONS[:1], FLAWS, "two solutions or more"),
        ([Solution("?", "4"), Solution("?", "5")], FLAWS, "solution 1 does not end in"),
    ):
        with pytest.raises(UserError, match=said):
            list(planted_pairs(solutions, 0, flaws))


def test_the_tool(tmp_path: Path) -> None:
    source, out = tmp_path / "sft.jsonl", tmp_path / "p.jsonl"
    rows = [{"prompt": one.prompt, "response": one.response} for one in SOLUTIONS[:8]]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run([sys.executable, "tools/make_preferences.py", "--input", str(source), "--out", str(out)])
    assert done.returncode == 0 and "8 pairs" in done.stdout, done.stderr
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["chosen"] for row in written] == [row["response"] for row in rows]
    assert [row["subset"] for row in written] == [*PLAIN, *PLAIN]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": [
        {"role": "system", "content": "x"}, {"role": "user", "content": "?"}, {"role": "assistant", "content": "\\boxed{1}"}
    ]}) + "\n")  # fmt: skip
    flags = ["--input", str(tmp_path / "chat.jsonl"), "--out", str(out)]
    done = run([sys.executable, "tools/make_preferences.py", *flags])
    assert done.returncode == 2 and "chat.jsonl:1: more than a question and its answer" in done.stderr
