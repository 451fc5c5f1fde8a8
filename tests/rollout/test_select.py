"""What of a step is trained: dynamic sampling, advantages, KL in the reward, the budget in its order."""

from __future__ import annotations

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


def test_dynamic_sampling_trains_the_first_groups_with_a_signal() -> None:
    from megatron_ring.rollout.select import missing, select_step

    step, config = scored(REWARDS), make_config(name="dapo")
    assert missing(config, step[:4], None) == (
        "1 groups whose rewards differ, of 2: raise --budget.max-rounds, with which this run can be continued; "
        "--objective.dynamic-sampling False needs a new run"
    )
    assert missing(config, step[:6], None) == ""
    selection = select_step(config, 0, step, None, None)
    assert selection.trained == [0, 0, 5, 5, 5, 5, 0, 0, 0, 0]
    assert selection.advantages == pytest.approx([0, 0, -1, 1, 1, -1, 0, 0, 0, 0])
    assert selection.equal_fraction == pytest.approx(0.4) and selection.kl is None


def test_without_it_everything_is_trained() -> None:
    from megatron_ring.rollout.select import missing, select_step

    step, groups = scored(REWARDS), [p for p, rewards in REWARDS.items() for _ in rewards]
    rewards = [item.reward for item in step]
    for name, baseline, std in (("grpo", "mean", True), ("dr-grpo", "leave-one-out", False)):
        config = make_config(name=name, baseline=baseline)
        assert missing(config, step[:1], None) == ""
        selection = select_step(config, 0, step, None, None)
        assert selection.trained == [5] * 10
        assert selection.advantages == pytest.approx(advantages(rewards, groups, baseline != "mean", std))


def test_a_budget_counts_the_tokens_of_kept_groups_alone() -> None:
    from megatron_ring.rollout.select import missing, select_step

    step = scored(REWARDS, lengths=[3, 3, 4, 9, 5, 6, 3, 3, 2, 8])
    config = make_config(dynamic_sampling=True, budget={"order": "longest-first"})
    assert missing(config, step, 35) == (
        "34 tokens (mean response 4.6) of the budget 35: raise --budget.max-rounds, with which this run can be continued; "
        "a lower --budget.tokens or a larger --prompts-per-step needs a new run"
    )
    assert missing(config, step, 34) == ""
    assert select_step(config, 0, step, 20, None).trained == [0, 0, 0, 9, 0, 3, 0, 0, 0, 8]
    shuffled = make_config(budget={"order": "random"})
    first, again, later = (select_step(shuffled, number, step, 20, None).trained for number in (3, 3, 4))
    assert first == again != later and sum(first) == sum(later) == 20


def test_a_continued_run_may_change_what_the_mends_say() -> None:
    from megatron_ring.rl import MAY_DIFFER
    from megatron_ring.rollout.select import missing

    config = make_config(dynamic_sampling=True)
    for lacks in (missing(config, scored(REWARDS)[:2], 99), missing(config, scored(REWARDS)[:2], None)):
        here, elsewhere = lacks.split("with which this run can be continued")
        flags = [[word[2:].strip(",;").replace("-", "_") for word in part.split() if word[:2] == "--"]
                 for part in (here, elsewhere)]  # fmt: skip
        assert flags[0] and set(flags[0]) <= MAY_DIFFER
        assert flags[1] and not MAY_DIFFER & set(flags[1])


def test_kl_in_the_reward_comes_before_the_advantages_and_after_the_choice_of_groups() -> None:
    from megatron_ring.rollout.select import select_step

    step = scored({1: [1.0, 1.0, 1.0], 2: [1.0, 0.0, 0.0]})
    distances = [0.5, 1.0, 0.0, 2.0, 0.0, 4.0]
    config = make_config(name="grpo", kl_beta=0.1, kl_place="reward", std=False)
    penalized = [item.reward - 0.1 * distance for item, distance in zip(step, distances, strict=True)]
    selection = select_step(config, 0, step, None, lambda rollouts: distances)  # type: ignore[arg-type]
    assert selection.advantages == pytest.approx(advantages(penalized, [1, 1, 1, 2, 2, 2], False, False))
    assert selection.kl == pytest.approx(sum(distances) / 30)
    dapo = make_config(name="dapo", prompts=1, kl_beta=0.1, kl_place="reward")
    assert select_step(dapo, 0, step, None, lambda rollouts: distances[3:]).trained == [0, 0, 0, 5, 5, 5]  # type: ignore


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
