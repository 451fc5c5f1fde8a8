"""Decontamination: rows that hold a problem of a benchmark go, with the benchmark's name as the reason."""

from __future__ import annotations

from pathlib import Path

from megatron_ring.curation.benchmarks import Index, Overlap, hashes, tokens_of
from megatron_ring.curation.options import Decontaminate
from megatron_ring.curation.store import Row, ShardWriter
from megatron_ring.curation.text import prompt_text, words

_SOLUTION_CHARACTERS = 20_000
_BOUNDARY = ["\\end of problem"]  # no text has this token


class Decontaminator:
    """Compares one row after another with the index in a folder."""

    def __init__(self, options: Decontaminate, folder: Path) -> None:
        self._options, self._index = options, Index.load(folder, options)

    def __call__(self, row: Row, writer: ShardWriter) -> Row | None:
        options, prompt = self._options, prompt_text(row["prompt"])
        tokens = tokens_of(prompt, options.renamed)
        overlaps = self._index.overlaps(hashes(tokens))
        for solution in row.get("solutions", [])[:1]:
            text = str(solution.get("text"))[:_SOLUTION_CHARACTERS]
            overlaps += self._index.overlaps(hashes(_BOUNDARY + tokens_of(text, options.renamed)))
        if not overlaps:
            return row
        answer = " ".join(words(row["answer"])) if isinstance(row["answer"], str) else ""
        held = [overlap for overlap in overlaps if self._holds(overlap, answer)]
        if not held:
            return row
        worst = max(held, key=lambda overlap: overlap.coverage)
        same = "; the answers agree" if answer and answer == worst.item.answer else ""
        evidence = f"{worst.coverage:.0%} of the {worst.item.size} words of {worst.item.place}{same}"
        writer.drop(row, f"benchmark:{worst.item.name}", evidence)
        return None

    def _holds(self, overlap: Overlap, answer: str) -> bool:
        options = self._options
        if options.any:
            return True
        least = options.same_answer_coverage if answer and answer == overlap.item.answer else options.coverage
        if overlap.coverage >= least:
            return True
        return overlap.item.size > options.long_words and overlap.long_coverage >= options.same_answer_coverage
