"""What of a step is trained: dynamic sampling, advantages, KL in the reward, the budget in its order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.objective import BudgetConfig, ObjectiveConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.rl import RLConfig, RLDataConfig
from megatron_ring.rollout.records import Rollout, ScoredRollout
from megatron_ring.sampler.completion import Completion
from tests.algorithm.transcription import advantages
from tests.layouts import LAYOUTS


def scored(rewards: dict[int, list[float]], lengths: list[int] | None = None) -> list[ScoredRollout]:
    """One response for each reward, by prompt; token ids and log-probs follow from the place."""
    made = []
    for prompt, group in rewards.items():
        for sample, reward in enumerate(group):
            n = 5 if lengths is None else lengths[len(made)]
            tokens = [(7 * len(made) + 3 * t) % 300 for t in range(n)]
            logprobs = [-0.5 - 0.1 * t for t in range(n)]
            completion = Completion(
                tokens=tokens, logprobs=logprobs, processed_logprobs=logprobs, entropies=[0.0] * n, versions=[[0, n]],
                finish_reason="stop",
            )  # fmt: skip
            rollout = Rollout(prompt, sample, str(prompt), "math", [1, prompt], 0, completion)
            made.append(ScoredRollout(rollout, reward, ""))
    return made


def make_config(prompts: int = 2, budget: dict[str, Any] | None = None, **objective: Any) -> RLConfig:
    here = Path("nowhere")
    return RLConfig(
        run_dir=here, init_from=here, data=RLDataConfig(prompts=here, tokenizer=here, micro_batch_tokens=16),
        prompts_per_step=prompts, budget=BudgetConfig(**(budget or {})), objective=ObjectiveConfig(**objective),
    ).resolved()  # fmt: skip


REWARDS = {4: [1.0, 1.0], 9: [0.0, 1.0], 2: [0.5, 0.0], 7: [0.0, 0.0], 5: [1.0, 0.0]}


def select(
    config: RLConfig, step: int, scored: list[ScoredRollout], budget: int | None, distances: Any = None
) -> dict[tuple[int, int], tuple[float, int]]:
    """Advantage and trained tokens of each kept response by its key, as an RL step finds them. `distances`: of kept ones."""
    from megatron_ring.algorithm.budget import select_budget
    from megatron_ring.rollout.select import budget_order, kept_responses, response_advantages, response_lengths

    kept = kept_responses(config, scored, budget)
    advantages = response_advantages(
        config.objective, kept, [item.reward for item in kept], None if distances is None else distances(kept)
    )
    trained = select_budget(response_lengths(kept), budget, budget_order(config, step, kept, advantages)).trained
    return {item.key: pair for item, *pair in zip(kept, advantages, trained, strict=True)}  # type: ignore[misc]


def of_all(scored: list[ScoredRollout], selected: dict[Any, Any], which: int) -> list[Any]:
    """Advantages (0) or trained tokens (1) of every response, 0 where it is not kept."""
    return [selected.get(item.key, (0.0, 0))[which] for item in scored]


def test_dynamic_sampling_trains_the_first_groups_with_a_signal() -> None:
    from megatron_ring.rollout.select import equal_rewards_fraction, missing

    step, config = scored(REWARDS), make_config(name="dapo")
    assert missing(config, step[:4], None) == (
        "1 groups whose rewards differ, of 2: raise --budget.max-rounds, with which this run can be continued; "
        "--objective.dynamic-sampling False needs a new run"
    )
    assert missing(config, step[:6], None) == ""
    selected = select(config, 0, step, None)
    assert of_all(step, selected, 1) == [0, 0, 5, 5, 5, 5, 0, 0, 0, 0] and len(selected) == 4
    assert of_all(step, selected, 0) == pytest.approx([0, 0, -1, 1, 1, -1, 0, 0, 0, 0])
    assert equal_rewards_fraction(step) == pytest.approx(0.4)


def test_without_it_everything_is_trained() -> None:
    from megatron_ring.rollout.select import missing

    step, groups = scored(REWARDS), [p for p, rewards in REWARDS.items() for _ in rewards]
    rewards = [item.reward for item in step]
    for name, baseline, std in (("grpo", "mean", True), ("dr-grpo", "leave-one-out", False)):
        config = make_config(name=name, baseline=baseline)
        assert missing(config, step[:1], None) == ""
        selected = select(config, 0, step, None)
        assert of_all(step, selected, 1) == [5] * 10
        assert of_all(step, selected, 0) == pytest.approx(advantages(rewards, groups, baseline != "mean", std))


def test_a_budget_counts_the_tokens_of_kept_groups_alone() -> None:
    from megatron_ring.rollout.select import missing

    step = scored(REWARDS, lengths=[3, 3, 4, 9, 5, 6, 3, 3, 2, 8])
    config = make_config(dynamic_sampling=True, budget={"order": "longest-first"})
    assert missing(config, step, 35) == (
        "34 tokens (mean response 4.6) of the budget 35: raise --budget.max-rounds, with which this run can be continued; "
        "a lower --budget.tokens or a larger --prompts-per-step needs a new run"
    )
    assert missing(config, step, 34) == ""
    failed = [replace(item, detail={"judge_failure": "why"}, reason="no verdict, why") for item in step[:6]]
    assert missing(config, [*failed, *step[6:]], 35) == (
        "10 tokens of the budget 35, as 6 of 10 responses have no verdict, the first for this reason: no verdict, why"
    )
    assert of_all(step, select(config, 0, step, 20), 1) == [0, 0, 0, 9, 0, 3, 0, 0, 0, 8]
    shuffled = make_config(budget={"order": "random"})
    first, again, later = (of_all(step, select(shuffled, number, step, 20), 1) for number in (3, 3, 4))
    assert first == again != later and sum(first) == sum(later) == 20


def test_what_has_no_verdict_is_neither_trained_nor_compared_with() -> None:
    from megatron_ring.rewards.interface import MACHINE_FAILURE
    from megatron_ring.rollout.select import equal_rewards_fraction, missing

    def lose(step: list[ScoredRollout], *places: int) -> list[ScoredRollout]:
        lost = {MACHINE_FAILURE: "no memory"}
        return [replace(item, reward=0.0, detail=lost) if at in places else item for at, item in enumerate(step)]

    whole = scored({1: [1.0, 1.0, 1.0], 2: [1.0, 0.0, 1.0, 0.0]})
    step, config = lose(whole, 0, 6), make_config(name="grpo")
    selected = select(config, 0, step, None)
    assert of_all(step, selected, 1) == [0, 5, 5, 5, 5, 5, 0] and len(selected) == 5
    wanted = advantages([1.0, 1.0, 1.0, 0.0, 1.0], [1, 1, 2, 2, 2], False, True)
    assert of_all(step, selected, 0) == pytest.approx([0, *wanted, 0])
    assert equal_rewards_fraction(step) == 0.5  # the lost 0 is no reward that differs
    assert select(make_config(name="dapo"), 0, step, None).keys() == {(2, 0), (2, 1), (2, 2)}
    assert missing(config, step, 25) == "" and missing(config, step, 26).startswith("25 tokens")
    assert missing(config, lose(whole, *range(7)), None).startswith("no response with a verdict, the machine or")


def test_a_continued_run_may_change_what_the_mends_say() -> None:
    from megatron_ring.config.metadata import changeable
    from megatron_ring.rollout.select import missing

    config, may_change = make_config(dynamic_sampling=True), changeable(RLConfig)
    for lacks in (missing(config, scored(REWARDS)[:2], 99), missing(config, scored(REWARDS)[:2], None)):
        here, elsewhere = lacks.split("with which this run can be continued")
        flags = [[word[2:].strip(",;").replace("-", "_") for word in part.split() if word[:2] == "--"]
                 for part in (here, elsewhere)]  # fmt: skip
        assert flags[0] and set(flags[0]) <= may_change
        assert flags[1] and not may_change & set(flags[1])


def test_kl_in_the_reward_comes_before_the_advantages_and_after_the_choice_of_groups() -> None:
    from megatron_ring.rollout.select import Selection

    step = scored({1: [1.0, 1.0, 1.0], 2: [1.0, 0.0, 0.0]})
    distances = [0.5, 1.0, 0.0, 2.0, 0.0, 4.0]
    config = make_config(name="grpo", kl_beta=0.1, kl_place="reward", std=False)
    penalized = [item.reward - 0.1 * distance for item, distance in zip(step, distances, strict=True)]
    selected = select(config, 0, step, None, lambda kept: distances)
    assert of_all(step, selected, 0) == pytest.approx(advantages(penalized, [1, 1, 1, 2, 2, 2], False, False))
    assert Selection(step, [0.0] * 6, [5] * 6, distances, []).kl == pytest.approx(sum(distances) / 30)
    assert Selection(step, [0.0] * 6, [5] * 6, None, []).kl is None
    dapo = make_config(name="dapo", prompts=1, kl_beta=0.1, kl_place="reward")
    assert of_all(step, select(dapo, 0, step, None, lambda kept: distances[3:]), 1) == [0, 0, 0, 5, 5, 5]


def kl_of(parallel: ParallelConfig, step: list[ScoredRollout]) -> list[float]:
    from megatron_ring.rollout.reward_kl import RewardKL
    from tests.training.test_policy_training import prepared

    _, _, policy = prepared(parallel, "grpo", "none")
    return RewardKL(policy.reference, "k1", 16, 0)([item.rollout for item in step])


def kl_by_hand(step: list[ScoredRollout]) -> list[float]:
    from tests.training.test_policy_training import prepared, token_logprobs

    _, trainer, policy = prepared(ParallelConfig(), "grpo", "none")
    found = []
    for item in step:
        tokens = [*item.rollout.prompt_tokens, *item.rollout.completion.tokens]
        with policy.reference.in_place_of_the_model(), torch.no_grad():
            ref = token_logprobs(trainer.model, tokens)[range(1, len(tokens) - 1), tokens[2:]]
        found.append((torch.tensor(item.rollout.completion.logprobs) - ref).sum().item())
    return found


@pytest.mark.distributed
def test_kl_of_whole_responses_is_the_same_on_every_layout(run_on: Any) -> None:
    step = scored({1: [1.0, 0.0, 1.0], 2: [1.0, 0.0]}, lengths=[4, 11, 1, 6, 9])
    wanted = run_on(1, kl_by_hand, step)[0]
    for layout in ("one", "dp2", "pp2"):
        processes, parallel = LAYOUTS[layout]
        for found in run_on(processes, kl_of, parallel, step):
            assert found == pytest.approx(wanted, rel=1e-4), layout
