"""Generated pairs of answers against what SymPy and plain numbers say; `tools/check_verifiers.py` judges thousands."""

from __future__ import annotations

import pytest

from tools.check_verifiers import MAX_REFUSED, check
from tools.verifier_pairs import KINDS, generate


@pytest.mark.parametrize("seed", [3])
def test_no_wrong_answer_is_accepted_and_hardly_a_right_one_refused(seed: int) -> None:
    pairs = generate(30 * len(KINDS), seed)
    result = check(pairs, workers=1)
    assert result["accepted_pairs"] == []
    assert result["refused_share"] <= MAX_REFUSED, result["refused_pairs"]
    assert 0.3 < result["equal"] / len(pairs) < 0.7  # both kinds of error could show


def test_the_same_seed_gives_the_same_pairs() -> None:
    assert generate(50, 5) == generate(50, 5) != generate(50, 6)
