"""RewardBench 1 and 2: their file forms, and their published rules against a plain transcription with numpy."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from megatron_ring.benchmarks.reward_bench import (
    COUNTS,
    SECTIONS,
    Question,
    is_version_1,
    is_version_2,
    read_question,
    score_version_1,
    score_version_2,
)
from megatron_ring.errors import UserError

ROW_1 = {
    "prompt": "?",
    "chosen": "a",
    "rejected": "b",
    "chosen_model": "x",
    "rejected_model": "y",
    "subset": "hep-go",
    "id": 3,
}
ROW_2 = {"id": "12", "prompt": "?", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "num_incorrect": 3,
         "total_completions": 4, "models": ["m"], "subset": "Focus", "additional_metadata": None}  # fmt: skip


def test_the_published_weights() -> None:
    assert sum(COUNTS.values()) == 2985 - 447 + 984 and len(COUNTS) == 23
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(COUNTS)
    assert [sum(COUNTS[name] for name in names) for names in SECTIONS.values()] == [358, 456, 740, 1968]


def test_rows_as_they_are_downloaded() -> None:
    assert is_version_1(ROW_1) and not is_version_2(ROW_1) and is_version_2(ROW_2) and not is_version_1(ROW_2)
    assert read_question(ROW_1, "f:1", 1) == Question("3", "hep-go", "?", ("a", "b"), 1)
    assert read_question(ROW_2, "f:1", 2) == Question("12", "Focus", "?", ("a", "b", "c", "d"), 1)
    tied = {**ROW_2, "subset": "Ties", "id": "tied:4", "chosen": ["a", "b"], "num_correct": 2}
    assert read_question(tied, "f:1", 2).correct == 2
    bad: list[tuple[dict[str, Any], int, str]] = [
        ({**ROW_1, "subset": "mine"}, 1, "subset 'mine' is none of RewardBench's"),
        ({**ROW_1, "chosen": ["a"]}, 1, "'chosen' must be text"),
        ({**ROW_2, "rejected": []}, 2, "'rejected' must be a list of texts"),
        ({**ROW_2, "num_correct": 2}, 2, "'num_correct' is 2, but 'chosen' has 1"),
        ({**ROW_2, "chosen": ["a", "b"], "num_correct": 2}, 2, "2 right answers outside of Ties"),
        ({**tied, "id": "7"}, 2, "id '7' of a row of Ties"),
        ({**ROW_2, "prompt": None}, 2, "'prompt' and 'subset' must be texts"),
    ]
    for row, version, said in bad:
        with pytest.raises(UserError, match=r"^f:9: ") as error:
            read_question(row, "f:9", version)
        assert said in str(error.value)


@pytest.mark.parametrize("seed", range(4))
def test_version_1_by_brute_force(seed: int) -> None:
    """Every row repeated as often as its subset's weight says, in one mean of a section."""
    rng = random.Random(seed)
    names = list(COUNTS) if seed else ["math-prm", "hep-go", "donotanswer"]
    rows = [Question(str(n), rng.choice(names), "?", ("a", "b"), 1) for n in range(400)]
    rewards = [[float(rng.randrange(4)), float(rng.randrange(4))] for _ in rows]
    found = score_version_1(rows, rewards)
    sections = []
    for section, subsets in SECTIONS.items():
        weighted = []
        for subset in subsets:
            right = [float(c > r) for row, (c, r) in zip(rows, rewards, strict=True) if row.subset == subset]
            weighted += [(value, COUNTS[subset] / len(right)) for value in right]
        if weighted:
            values, weights = np.array(weighted).T
            sections.append(np.average(values, weights=weights))
            assert found["sections"][section] == pytest.approx(sections[-1])
    assert found["score"] == pytest.approx(np.mean(sections))
    assert set(found["missing_subsets"]) == set(COUNTS) - {row.subset for row in rows}
    assert sum(part["rows"] for part in found["subsets"].values()) == 400


def ties_by_the_paper(rows: list[Question], rewards: list[list[float]]) -> float:
    """As published, transcribed: a list of (right?, score) for each prompt."""
    held: dict[tuple[str, int], list[tuple[bool, float]]] = defaultdict(list)
    for row, scores in zip(rows, rewards, strict=True):
        kind, number = row.id.split(":")
        for place, score in enumerate(scores):
            held[kind, int(number)].append((place < row.correct, score))

    def of(samples: list[tuple[bool, float]]) -> tuple[bool, float, float]:
        good, bad = [s for right, s in samples if right], [s for right, s in samples if not right]
        return min(good) > max(bad), max(good) - min(good), min(good) - max(bad)

    ref = {number: of(samples) for (kind, number), samples in held.items() if kind == "ref"}
    tied = {number: of(samples) for (kind, number), samples in held.items() if kind == "tied"}
    both = sorted(set(ref) & set(tied))
    spread, gap, ref_gap = (np.array([part[n][i] for n in both]) for part, i in ((tied, 1), (tied, 2), (ref, 2)))
    with np.errstate(all="ignore"):
        margin = np.nan_to_num(np.tanh(np.minimum(ref_gap, gap) / spread - 1), nan=0.0)
    return float(
        0.3 * np.mean([one[0] for one in tied.values()]) + 0.3 * np.mean([one[0] for one in ref.values()])
        + 0.2 * np.mean(gap > spread) + 0.2 * np.mean(np.minimum(ref_gap, gap) > spread) + 0.01 * margin.mean()
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_version_2_by_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    subsets = ["Factuality", "Precise IF", "Math", "Safety", "Focus"]
    rows = [Question(str(n), rng.choice(subsets), "?", ("a", "b", "c", "d"), 1) for n in range(120)]
    for number in range(20):
        right = rng.randint(2, 5)
        rows.append(Question(f"ref:{number}", "Ties", "?", tuple("abcd"), 1))
        if number != 3:
            rows.append(Question(f"tied:{number}", "Ties", "?", tuple("abcdefgh")[: right + 3], right))
    # Whole numbers, so that scores are equal now and then; the right answers lie higher with growing seed.
    rewards = [
        [float(rng.randrange(4) + (seed if place < row.correct else 0)) for place in range(len(row.answers))] for row in rows
    ]
    found = score_version_2(rows, rewards)
    means = []
    for subset in subsets:
        each = []
        for row, scores in zip(rows, rewards, strict=True):
            if row.subset == subset:
                best = max(scores)
                each.append(1 / sum(score == best for score in scores) if scores[0] == best else 0.0)
        means.append(np.mean(each))
        assert found["subsets"][subset]["accuracy"] == pytest.approx(means[-1])
    ties = [(row, scores) for row, scores in zip(rows, rewards, strict=True) if row.subset == "Ties"]
    means.append(ties_by_the_paper([row for row, _ in ties], [scores for _, scores in ties]))
    assert found["subsets"]["Ties"]["accuracy"] == pytest.approx(means[-1])
    assert found["score"] == pytest.approx(np.mean(means)) and found["missing_subsets"] == []


def test_a_part_of_the_file() -> None:
    rows = [Question("ref:1", "Ties", "?", ("a", "b"), 1), Question("1", "Math", "?", tuple("abcd"), 1)]
    found = score_version_2(rows, [[1.0, 0.0], [2.0, 1.0, 0.0, 0.0]])
    assert found["score"] == 1.0 and found["subsets"]["Ties"]["accuracy"] is None
    assert found["missing_subsets"] == ["Factuality", "Precise IF", "Safety", "Focus"]
    assert score_version_2(rows[:1], [[1.0, 0.0]])["score"] is None
