"""C3PO++ over several steps: nothing is lost, tokens have the log-probs of their versions, layouts do not matter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.objective import BudgetConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.rewards import RewardConfig
from megatron_ring.config.rl import RLConfig, RLDataConfig
from megatron_ring.config.sampling import SamplingConfig
from tests.layouts import LAYOUTS
from tests.mains.conftest import command, rl_flags, run
from tests.mains.test_pipeline import metrics

PHI, STEPS, SHAPE = 80, 6, replace(RING_TINY, num_layers=2, init_std=0.1)


def make_config(data: Path, parallel: ParallelConfig) -> RLConfig:
    stops = tuple(range(100, 120))  # a random model ends its responses about every 25th token
    return RLConfig(
        run_dir=data, init_from=data, data=RLDataConfig(prompts=data / "rl_prompts.jsonl", tokenizer=data / "tokenizer"),
        prompts_per_step=4, samples_per_prompt=4, parallel=parallel, seed=3,
        budget=BudgetConfig(tokens=PHI, scope="global", max_cuts=1), rewards=RewardConfig(workers=1),
        sampling=SamplingConfig(max_new_tokens=60, stop_token_ids=stops, max_batch=8),
    ).resolved()  # fmt: skip


def collected(data: Path, parallel: ParallelConfig, through_bytes: bool) -> dict[str, Any]:
    """Several steps, the weights drawn anew for each of them; what became of every response."""
    from megatron_ring.algorithm.budget import select_budget
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.data.files import read_prompts
    from megatron_ring.data.prompts import PromptStream
    from megatron_ring.data.schedule import single_source
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.rollout.collecting import Collector
    from megatron_ring.rollout.scoring import open_scorer
    from megatron_ring.rollout.select import kept_responses, response_advantages, response_lengths
    from megatron_ring.rollout.unfinished import from_bytes, held_by, rebuilt, to_bytes
    from megatron_ring.run.phases import Phases
    from megatron_ring.sampler.sampler import Sampler

    config = make_config(data, parallel)
    here = context.initialize(parallel, SHAPE, seed=0)
    model = build_model(SHAPE, here)
    tokenizer = RingTokenizer.load(config.data.tokenizer)
    prompts = read_prompts(config.data.prompts)
    sampler = Sampler(model, here, config.sampling, tokenizer.eos_id)
    collector = Collector(config, PromptStream(single_source(prompts), 3), sampler, tokenizer, Phases())
    steps, selections = [], []
    with open_scorer(config.rewards, {prompt.domain for prompt in prompts}, tokenizer, here) as scorer:
        for step in range(STEPS):
            initialize_weights(model, seed=step)
            steps.append(collector.collect(step, scorer, PHI))
            kept = kept_responses(config, steps[-1].scored, PHI)
            advantages = response_advantages(config.objective, kept, [item.reward for item in kept], None)
            selections.append((advantages, select_budget(response_lengths(kept), PHI).trained))
            if through_bytes:
                held = held_by(collector.pool, 0)
                again = from_bytes(to_bytes(held, torch.zeros(sum(whole.length for _, whole in held), 0)), slice(None))
                whole = {(about["position"], about["sample"]): completion for about, completion in again}
                source = PromptStream(single_source(prompts), 3)
                collector.pool = rebuilt([[about for about, _ in again]], whole, source, collector.open)
    taken = collector.stream.state_dict()["position"]
    largest = _largest_difference(model, steps) if here.world_size == 1 else 0.0
    pool = collector.pool
    return {"steps": steps, "selections": selections, "open": pool.open, "finished": pool.finished, "taken": taken,
            "difference": largest}  # fmt: skip


def _largest_difference(model: Any, steps: list[Any]) -> float:
    """Between each recorded log-prob and that of a whole forward pass under the weights of the token's version."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages

    worst = 0.0
    for version in range(STEPS):
        initialize_weights(model, seed=version)
        for rollout in [item.rollout for step in steps for item in step.scored]:
            spans = torch.cat([torch.full((count,), v) for v, count in rollout.completion.versions])
            tokens = torch.tensor([*rollout.prompt_tokens, *rollout.completion.tokens])
            logits = forward_all_stages(model, tokens, PackedLayout(torch.arange(len(tokens)), [len(tokens)]))
            start = len(rollout.prompt_tokens)
            wanted = logits[start - 1 : -1].log_softmax(-1).gather(1, tokens[start:, None])[:, 0]
            found = torch.tensor(rollout.completion.logprobs)
            worst = max(worst, float(((found - wanted).abs() * (spans == version)).max()))
    return worst


@pytest.fixture(scope="module")
def alone(run_on: Any, tiny_data: Path) -> dict[str, Any]:
    return run_on(1, collected, tiny_data, ParallelConfig(), False)[0]


def check_nothing_is_lost(found: dict[str, Any]) -> None:
    """Every token that was sampled is in a step, in the pool, or was dropped; every step trains on the budget."""
    steps = found["steps"]
    scored = [item.rollout for step in steps for item in step.scored]
    left = [(item.prompt.position, item.sample) for item in found["open"]]
    left += [(item.rollout.prompt_index, item.rollout.sample) for item in found["finished"]]
    names = [(rollout.prompt_index, rollout.sample) for rollout in scored] + left
    dropped = sum(step.unfinished["dropped"] for step in steps)
    assert len(set(names)) == len(names) and len(names) + dropped == 4 * found["taken"]
    tokens = sum(rollout.response_length for rollout in scored) + sum(item.length for item in found["open"])
    tokens += sum(item.rollout.response_length for item in found["finished"])
    generated = sum(step.generated_tokens for step in steps)
    assert tokens + sum(step.unfinished["dropped_tokens"] for step in steps) == generated
    assert all(step.rounds >= 1 for step in steps)
    assert all(sum(trained) == PHI for _, trained in found["selections"])
    for step in steps:
        groups: dict[int, int] = {}
        for item in step.scored:
            groups[item.rollout.prompt_index] = groups.get(item.rollout.prompt_index, 0) + 1
            assert item.rollout.completion.versions[-1][0] <= step.step
        assert all(2 <= count <= 4 for count in groups.values())


@pytest.mark.distributed
def test_each_token_has_the_logprob_of_its_version(alone: dict[str, Any]) -> None:
    check_nothing_is_lost(alone)
    assert alone["difference"] < 1e-5
    rollouts = [item.rollout for step in alone["steps"] for item in step.scored]
    assert 0 < sum(len(rollout.completion.versions) > 1 for rollout in rollouts) < len(rollouts)
    assert max(len(rollout.completion.versions) for rollout in rollouts) == 2  # cut once at most
    assert sum(step.unfinished["dropped"] for step in alone["steps"]) > 0
    assert any(len(step.scored) % 4 for step in alone["steps"])  # a group that lost a response was trained


@pytest.mark.distributed
def test_the_pool_through_a_file_changes_nothing(run_on: Any, alone: dict[str, Any], tiny_data: Path) -> None:
    (again,) = run_on(1, collected, tiny_data, ParallelConfig(), True)
    assert [step.scored for step in again["steps"]] == [step.scored for step in alone["steps"]]
    assert again["open"] == alone["open"] and again["finished"] == alone["finished"]


def rollouts_of(found: dict[str, Any]) -> list[Any]:
    """The responses of all steps, then those that wait for others."""
    return [item.rollout for step in found["steps"] for item in step.scored] + [item.rollout for item in found["finished"]]


def check_who_holds_what(ranks: list[dict[str, Any]], replicas: int) -> None:
    """Every rank knows the same of all responses, and their tokens are where they were sampled."""
    for data_rank, found in enumerate(ranks):
        data_rank %= replicas
        for item in found["open"]:
            assert len(item.request.begun.tokens) == (item.length if item.holder == data_rank else 0)
        for rollout in rollouts_of(found):
            assert len(rollout.completion.tokens) == (rollout.response_length if rollout.holder == data_rank else 0)

    def known(found: dict[str, Any]) -> Any:
        steps = [[(i.rollout.holder, i.reward, i.reason) for i in step.scored] for step in found["steps"]]
        still = [(i.prompt, i.sample, i.cuts, i.holder, i.request.begun.without_tokens()) for i in found["open"]]
        done = [replace(rollout, completion=rollout.completion.without_tokens()) for rollout in rollouts_of(found)]
        return steps, found["selections"], still, done

    assert known(ranks[0]) == known(ranks[1])
    holders = {rollout.holder for rollout in rollouts_of(ranks[0])}
    assert holders == set(range(replicas))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2", "ep2"])
def test_under_every_layout(run_on: Any, alone: dict[str, Any], tiny_data: Path, layout: str) -> None:
    processes, parallel = LAYOUTS[layout]
    first, second = run_on(processes, collected, tiny_data, parallel, False)
    check_nothing_is_lost(first)
    check_who_holds_what([first, second], parallel.data(processes))
    whole = {(rollout.prompt_index, rollout.sample): rollout for rollout in rollouts_of(alone)}
    pairs = zip(rollouts_of(first), rollouts_of(second), strict=True)
    here = [one if one.completion.tokens else other for one, other in pairs]
    if parallel.data(processes) == 1:  # several replicas stop elsewhere
        assert [r.completion.tokens for r in here] == [r.completion.tokens for r in whole.values()]
    for rollout in here:
        other = whole.get((rollout.prompt_index, rollout.sample))
        if other is not None and other.completion.versions == rollout.completion.versions:
            assert rollout.completion.tokens == other.completion.tokens


@pytest.mark.slow
def test_a_run_logs_how_old_its_tokens_are(tiny_data: Path, tmp_path: Path, sft_checkpoint: Path) -> None:
    more = ["--budget.max-cuts", "2", "--steps", "4", "--sampling.max-batch", "8"]
    done = run(command("megatron_ring.rl", *rl_flags(tiny_data, tmp_path, sft_checkpoint, *more)))
    assert done.returncode == 0, done.stderr
    before = 0
    for step, row in enumerate(metrics(tmp_path)):
        ages = []
        for line in (tmp_path / "rollouts" / f"step_{step + 1}.jsonl").read_text().splitlines():
            response = json.loads(line)
            of_each = [step - version for version, count in response["versions"] for _ in range(count)]
            assert len(of_each) == response["tokens"]
            ages += of_each[: response["trained_tokens"]]
        assert len(ages) == row["tokens/trained"] == 200
        assert row["staleness/mean"] == pytest.approx(sum(ages) / 200) and row["staleness/max"] == max(ages)
        assert row["staleness/older_fraction"] == pytest.approx(sum(age > 0 for age in ages) / 200)
        assert row["unfinished/continued"] == before
        before = row["unfinished/responses"]
    assert before > 0 and max(row["staleness/mean"] for row in metrics(tmp_path)) > 0
