"""What a study teaches of a rule, by hand on two seeds of three starts; and studies that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.analysis.read_run import Epoch
from megatron_ring.analysis.start_rules import Outcome, Study, learn_band, learn_ratio, read_study, regret, say
from megatron_ring.analysis.start_rules import choose_by_band as by_band
from megatron_ring.errors import UserError

ENTROPIES = {1: (0.9, 0.5, 0.2), 2: (0.8, 0.45, 0.15)}
SCORES = {1: (0.40, 0.60, 0.50), 2: (0.35, 0.55, 0.58)}
COUNTS = (1, 2, 4)


def study(seeds: tuple[int, ...] = (1, 2)) -> Study:
    return {
        seed: [
            Outcome(Epoch(str(count), count, count, 1000.0 * count, entropy, 1 / count), score, 4000.0)
            for count, entropy, score in zip(COUNTS, ENTROPIES[seed], SCORES[seed], strict=True)
        ]
        for seed in seeds
    }


def test_the_band_has_the_least_mean_regret() -> None:
    # Seed 1 is best after 2 epochs (0.5 nats), seed 2 after 4 (0.15). A band from 0.45 takes 2 epochs of both: seed 2 loses
    # 0.03. One that reaches 0.15 or 0.2 takes 4 epochs of both: seed 1 loses 0.10.
    learnt = learn_band(study())
    assert learnt.value == (0.45, 0.5) and learnt.regret == pytest.approx(0.015)
    # As good: 0.45 to 0.45, 0.5, 0.8 or 0.9, and 0.5 alone, to which 0.45 is the nearest.
    assert learnt.ranges == ((0.45, 0.5), (0.45, 0.9))
    # Seed 2 alone teaches 0.15, whose nearest in seed 1 are 4 epochs; seed 1 alone 0.5, nearest in seed 2 are 2 epochs.
    assert [(seed, value) for seed, value, _ in learnt.without] == [(1, (0.15, 0.15)), (2, (0.5, 0.5))]
    assert [found for _, _, found in learnt.without] == pytest.approx([0.10, 0.03])
    held = learnt.held_out
    assert held is not None and held.interval is not None and held.value == pytest.approx(0.065)
    assert held.interval.high - held.value == pytest.approx(12.7062 * 0.035, rel=1e-4)  # t x half the difference
    said = say(learnt, study(), " nats")
    assert "from 2 seed(s) and 6 starts: 0.45–0.5 nats" in said and "its lower end may be 0.45 to 0.5" in said
    assert "Without one seed it is 0.15–0.15, 0.5–0.5" in said and "6.5 points (95 % interval -38.0 to 51.0)" in said


def test_the_ratio_has_the_least_mean_regret() -> None:
    learnt = learn_ratio(study())
    assert learnt.value == (2.0,) and learnt.ranges == ((2.0, 2.0),) and learnt.regret == pytest.approx(0.015)
    assert [(seed, value) for seed, value, _ in learnt.without] == [(1, (1.0,)), (2, (2.0,))]
    assert [found for _, _, found in learnt.without] == pytest.approx([0.10, 0.03])


def test_one_seed_teaches_without_a_spread() -> None:
    learnt = learn_band(study((1,)))
    assert learnt.value == (0.5, 0.5) and learnt.regret == 0 and learnt.without == () and learnt.held_out is None
    assert "One seed says nothing" in say(learnt, study((1,)), " nats")


def test_regret_is_against_the_best_in_hindsight() -> None:
    outcomes = study()[1]
    assert regret(outcomes, by_band(outcomes, (0.3, 0.6))) == 0
    assert regret(outcomes, by_band(outcomes, (0.0, 0.1))) == pytest.approx(0.1)
    assert regret(outcomes, by_band(outcomes, (0.8, 1.0))) == pytest.approx(0.2)


def start(**changed: Any) -> dict[str, Any]:
    return {"seed": 1, "epochs": 2, "sft_tokens": 2000, "validation_loss": 0.5, "validation_entropy": 0.3, "last": 0.6,
            "rl_tokens": 4000, **changed}  # fmt: skip


def test_a_study_is_read_from_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"starts": [start(), start(epochs=4, last=0.7), start(seed=3)]}))
    found = read_study(path)
    assert {seed: [(o.start.epoch, o.score) for o in outcomes] for seed, outcomes in found.items()} == {
        1: [(2, 0.6), (4, 0.7)],
        3: [(2, 0.6)],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "holds no starts"),
        ('{"starts": []}', "holds no starts"),
        ('{"steadiness": {}}', "holds no starts"),  # another study
        ('{"starts": [7]}', "start 1: seed is no finite number"),
        (json.dumps({"starts": [start(), start(last=None)]}), "start 2: last is no finite number"),
        (json.dumps({"starts": [start(validation_entropy=float("nan"))]}), "validation_entropy is no finite number"),
        (json.dumps({"starts": [start(last=True)]}), "last is no finite number"),
        (json.dumps({"starts": [start(sft_tokens=0)]}), "tokens of 0"),
        (json.dumps({"starts": [start(), start()]}), "two starts of the same epochs"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "study.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_study(path)
