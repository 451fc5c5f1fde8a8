"""Rewards of responses that a real sampler draws: by verifiers and batch scorers on every layout, and none that outlive a
sampling that failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.judge import RewardJudgeConfig
from megatron_ring.config.operations import AlarmConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.rewards import RewardConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.data.prompts import StreamPrompt
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.tokenizer import RingTokenizer, train_bpe
from megatron_ring.errors import NotFiniteError
from megatron_ring.rewards import Reward
from megatron_ring.rewards.batch import BATCH_SCORERS, BatchItem, BatchScorerEntry
from tests.layouts import LAYOUTS

ALWAYS = {"script": "latin", "share": 0.0}  # every response gets 1
BROKEN = "€"


def rewards_after_a_failure(parallel: ParallelConfig, tokenizer_path: Path) -> list[float]:
    """A held-out evaluation whose sampling breaks when a part of its responses are finished, then training prompts at the
    same positions, dealt the other way round."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.rollout.evaluation import evaluate_prompts
    from megatron_ring.rollout.scoring import open_scorer
    from megatron_ring.sampler.sampler import Sampler

    tokenizer = RingTokenizer.load(tokenizer_path)
    shape = replace(RING_TINY, num_layers=2)
    here = context.initialize(parallel, shape, seed=0)
    model = build_model(shape, here)
    initialize_weights(model, seed=1)
    with torch.no_grad():
        for token in tokenizer.encode(BROKEN):
            model.embedding.word_embeddings.weight[token] = torch.nan
    sampler = Sampler(model, here, SamplingConfig(max_new_tokens=2, max_batch=1), tokenizer.eos_id, tokenizer.decode)
    texts = ["one", "two", f"three {BROKEN}", "four"]
    held = [StreamPrompt(i, PromptRecord(str(i), "format/script", text, ALWAYS)) for i, text in enumerate(texts)]
    trained = [StreamPrompt(i, PromptRecord(str(i), "format/one_box", texts[i], {})) for i in (1, 0)]
    domains = ["format/script", "format/one_box"]
    with open_scorer(RewardConfig(workers=1), domains, tokenizer, here) as scorer:
        with pytest.raises(NotFiniteError):
            evaluate_prompts(held, sampler, tokenizer, scorer, samples=2, seed=0, instruction=None)
        sampler.release()
        scored = evaluate_prompts(trained, sampler, tokenizer, scorer, samples=2, seed=0, instruction=None)
    return [item.reward for item in scored]


@pytest.mark.distributed
def test_rewards_of_a_failed_evaluation_do_not_come_back(run_on, tmp_path: Path) -> None:
    train_bpe(["one two three four"] * 20, 300, tmp_path)
    processes, parallel = LAYOUTS["dp2"]
    assert run_on(processes, rewards_after_a_failure, parallel, tmp_path) == [[0.0] * 4] * processes


class TogetherScorer:
    """A batch scorer that needs all ranks and the policy's model: rewards say how many responses the world has scored, and
    which ones were scored beside this one."""

    def __init__(self, resources: Any) -> None:
        self.resources = resources

    def score(self, items: Sequence[BatchItem]) -> list[Reward]:
        from megatron_ring.parallel import collectives
        from megatron_ring.rollout.sampling import sample_rollouts

        counts = collectives.gather_over_world(len(items))
        assert sample_rollouts(self.resources.sampler, [], version=0) == ([], [])  # all ranks of the run are here
        beside = [[item.group, item.sample] for item in items]
        return [Reward(float(sum(counts)), item.request.answer["x"], {"beside": beside}) for item in items]


def scored_together(parallel: ParallelConfig, folder: Path) -> list[dict[str, Any]]:
    """Responses to prompts of a composition, of a batch scorer and of a verifier."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.rollout.evaluation import evaluate_prompts
    from megatron_ring.rollout.scoring import open_scorer
    from megatron_ring.sampler.sampler import Sampler

    BATCH_SCORERS["test/together"] = BatchScorerEntry("tests.rollout.test_scoring:TogetherScorer")
    tokenizer = RingTokenizer.load(folder)
    shape = replace(RING_TINY, num_layers=2)
    here = context.initialize(parallel, shape, seed=0)
    model = build_model(shape, here)
    initialize_weights(model, seed=1)
    sampler = Sampler(model, here, SamplingConfig(max_new_tokens=3, max_batch=2), tokenizer.eos_id, tokenizer.decode)
    domains = ["mixed", "test/together", "format/script", "mixed", "test/together"]
    answers = [{"x": f"p{i}", **ALWAYS} if domain != "format/script" else ALWAYS for i, domain in enumerate(domains)]
    prompts = [
        StreamPrompt(i, PromptRecord(str(i), domain, "one two", answer))
        for i, (domain, answer) in enumerate(zip(domains, answers, strict=True))
    ]
    config = RewardConfig(workers=1, compositions=folder / "rewards.json")
    with open_scorer(config, set(domains), tokenizer, here, sampler) as scorer:
        scored = evaluate_prompts(prompts, sampler, tokenizer, scorer, samples=2, seed=0, instruction=None)
    return [{"key": item.key, "reward": item.reward, "reason": item.reason, "detail": item.detail} for item in scored]


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["one", "dp2", "tp2", "pp2", "ep2"])
def test_batch_scorers_see_their_replica_s_responses_together(run_on, tmp_path: Path, layout: str) -> None:
    train_bpe(["one two three four"] * 20, 300, tmp_path)
    parts = [{"name": "script", "domain": "format/script", "with": ALWAYS},
             {"name": "together", "domain": "test/together", "weight": 0.5}]  # fmt: skip
    declared = {"mixed": {"parts": parts, "gates": [{"name": "alone", "domain": "group/diversity"}]}}
    (tmp_path / "rewards.json").write_text(json.dumps(declared))
    processes, parallel = LAYOUTS[layout]
    replicas = parallel.data(processes)
    # Prompts go to replicas in turn; two responses each; all but prompt 2 are for the batch scorer.
    held = [[[p, s] for p in range(rank, 5, replicas) if p != 2 for s in (0, 1)] for rank in range(replicas)]
    total = float(sum(len(keys) for keys in held) * processes / replicas)  # each rank of a replica brings them
    ranks = run_on(processes, scored_together, parallel, tmp_path)
    assert all(rank == ranks[0] for rank in ranks)
    assert [item["key"] for item in ranks[0]] == [(p, s) for p in range(5) for s in (0, 1)]
    for item in ranks[0]:
        prompt, _ = item["key"]
        if prompt == 2:
            assert item["reward"] == 1
        elif prompt in (1, 4):
            assert (item["reward"], item["reason"]) == (total, f"p{prompt}")
            assert item["detail"] == {"beside": held[prompt % replicas]}
        else:  # no response has an answer: the gate stays shut, and each part is told
            assert item["reward"] == 0 and item["reason"] == "gate alone: no final answer"
            assert item["detail"]["parts"] == {"script": [1.0, item["detail"]["parts"]["script"][1]],
                                               "together": [total, f"p{prompt}"]}  # fmt: skip


def test_groups_that_are_taken_apart_are_refused(tmp_path: Path) -> None:
    from megatron_ring.data.schedule import PromptSource
    from megatron_ring.errors import UserError
    from megatron_ring.rollout.scoring import check_prompts

    (tmp_path / "rewards.json").write_text(json.dumps({"mixed": {"parts": [{"name": "d", "domain": "group/diversity"}]}}))
    config = RewardConfig(compositions=tmp_path / "rewards.json")
    for domain in ("mixed", "group/diversity"):
        source = PromptSource("rl", tmp_path / "p.jsonl", (PromptRecord("1", domain, "?", {}),))
        check_prompts([source], config)
        with pytest.raises(UserError, match=r"p\.jsonl: domain '.*' is scored by 'group/diversity', which compares"):
            check_prompts([source], config, whole_groups=False)


def test_what_nothing_is_scored_by_is_said(tmp_path: Path) -> None:
    from megatron_ring.rollout.scoring import idle

    parts = [{"name": "model", "domain": "reward-model"}, {"name": "rule", "domain": "math", "weight": 0}]
    (tmp_path / "c.json").write_text(json.dumps({"held": {"parts": parts}, "plain": {"parts": parts[:1]}}))
    judge = RewardJudgeConfig(url="http://127.0.0.1:9/v1", model="m", again=0.5)
    config = RewardConfig(reward_model=Path("r"), judge=judge, compositions=tmp_path / "c.json")
    alarms = AlarmConfig(rule_gap=0.1, judge_disagreement=0.1)
    assert idle(["held", "judge/rubric"], config, alarms) == []
    said = [line.split(": ")[0] for line in idle(["math"], config, alarms)]
    assert said == ["--rewards.reward-model", "--rewards.judge", "--alarms.rule-gap"]
    config = replace(config, judge=replace(judge, again=0.0))
    assert [line.split(": ")[0] for line in idle(["plain", "judge"], config, alarms)] == [
        "--alarms.rule-gap", "--alarms.judge-disagreement"
    ]  # fmt: skip
    assert idle(["math"], RewardConfig(), AlarmConfig()) == []
