"""Small general tasks: their answers by their own verifiers, the planted quality, and preferences drawn from it."""

from __future__ import annotations

import random

import pytest

from megatron_ring.errors import UserError
from megatron_ring.rewards import ScoreRequest
from megatron_ring.rewards.registry import VERIFIERS
from megatron_ring.toy.general import KINDS, draw_tasks, preference, quality

BEST = "It is a red box. It weighs 7 kg. It comes from Rome."


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_answer_earns_all_and_careless_ones_do_not_always(kind: str) -> None:
    tasks, rng = draw_tasks(3, kind, 60), random.Random(1)
    assert len({task.prompt for task in tasks}) == 60
    values = []
    for task in tasks:
        if kind == "open":
            assert quality(task.best, task.best) == 3
            values.append(quality(task.best, task.careless(rng)))
            continue
        verifier = VERIFIERS[task.domain]
        assert verifier.score(ScoreRequest(task.domain, None, task.best, task.answer)).value == 1
        values.append(verifier.score(ScoreRequest(task.domain, None, task.careless(rng), task.answer)).value)
    assert min(values) < max(values)
    again = draw_tasks(3, kind, 60)
    assert (
        [task.prompt for task in again]
        == [task.prompt for task in tasks]
        != [task.prompt for task in draw_tasks(4, kind, 60)]
    )


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (BEST, 3),
        ("It comes from Rome. It is a red box.", 2),
        ("It is a red box. It is a red box.", 0),
        (f"{BEST} {BEST}", 0),
        ("It is a red box. Many people know it.", 0),
        ("It is a blue box. It weighs 7 kg", -1),
        ("It is a red box", 0),
        ("", -1),
        ("...", 0),
    ],
)
def test_quality_counts_sentences_once(response: str, value: float) -> None:
    assert quality(BEST, response) == value


def test_preferences_put_the_better_answer_first_and_length_tells_little() -> None:
    rng, longer, pairs = random.Random(5), 0, 0
    for task in draw_tasks(1, "open", 300):
        found = preference(task, rng)
        if found is not None:
            assert quality(task.best, found[0]) > quality(task.best, found[1])
            pairs, longer = pairs + 1, longer + (len(found[0]) > len(found[1]))
    assert pairs > 280 and 0.3 < longer / pairs < 0.7


def test_more_tasks_than_there_are_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(UserError, match="too few different tasks"):
        draw_tasks(1, "rules", 1000)
    with pytest.raises(UserError, match="unknown kind"):
        draw_tasks(1, "poems", 1)
