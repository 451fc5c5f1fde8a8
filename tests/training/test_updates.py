"""Several updates of one step through the product, against the published model, the losses and AdamW written down again in
float64: sequential updates, on one and on two data-parallel ranks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from megatron_ring.config.objective import BudgetConfig, ObjectiveConfig
from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.rl import RLConfig, RLDataConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.config.stage import TrainedModelOptions
from megatron_ring.rollout.records import Rollout, ScoredRollout
from megatron_ring.sampler.completion import Completion
from tests.algorithm.transcription import LOSSES, Constants, Response
from tests.checkpoint.published import random_tensors, write_folder
from tests.layouts import LAYOUTS
from tests.model.test_variants import PLAIN
from tests.reference_model import reference_logits

SHAPE = replace(PLAIN, num_layers=2)
LENGTHS = [3, 11, 1, 8, 5, 2, 7, 1, 6]
PHI, LR = 40, 3e-3
ADAM = OptimizerConfig(lr=LR, eps=1e-5, clip_grad=0.05, weight_decay=0.1)
LOSS: dict[str, Any] = {"kl_beta": 0.07, "alpha_entropy": 0.03}  # those of the transcription


class Case(NamedTuple):
    name: str
    updates: int
    old: str = "sampler"
    low: float = 0.2
    high: float = 0.28


CASES = [Case("c3po", 4), Case("c3po", 4, "recomputed"), Case("gspo", 3, low=0.01, high=0.02)]


def make_config(case: Case) -> RLConfig:
    nowhere = Path("nowhere")
    budget = {"budget": BudgetConfig(tokens=PHI, scope="global", order="longest-first")} if case.name == "c3po" else {}
    return RLConfig(
        run_dir=nowhere, init_from=nowhere, data=RLDataConfig(prompts=nowhere, tokenizer=nowhere, micro_batch_tokens=24),
        objective=ObjectiveConfig(
            name=case.name, old_logprobs=case.old, clip=case.low, clip_high=case.high, **LOSS,  # type: ignore[arg-type]
        ),
        sampling=SamplingConfig(max_new_tokens=11), updates_per_step=case.updates, **budget,
    ).resolved()  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {key: value * (0.6 if value.ndim > 1 else 1.0) for key, value in random_tensors(SHAPE, seed=3).items()}
    return write_folder(tmp_path_factory.mktemp("hf") / "hf", SHAPE, tensors)


@pytest.fixture(scope="module")
def step(folder: Path) -> list[ScoredRollout]:
    """Nine responses, held by the ranks in turn; the sampler's log-probs hover about those of the model."""
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    generator, made = torch.Generator().manual_seed(5), []
    for place, length in enumerate(LENGTHS):
        tokens = torch.randint(SHAPE.vocab_size, (length + 2,), generator=generator)
        now = reference_logits(tokens, tensors, config).log_softmax(-1)[range(1, length + 1), tokens[2:]]
        noise = 0.15 * torch.randn(length, generator=generator, dtype=torch.float64)
        logprobs = (now + noise).clamp(max=-1e-3).float().tolist()
        response = Completion(
            tokens=tokens[2:].tolist(), logprobs=logprobs, processed_logprobs=logprobs, entropies=[0.0] * length,
            versions=[[0, length]], finish_reason="stop",
        )  # fmt: skip
        rollout = Rollout(place // 3, place % 3, str(place // 3), "math", tokens[:2].tolist(), 0, response, place % 2)
        made.append(ScoredRollout(rollout, float(torch.randn(1, generator=generator)), ""))
    return made


def advantages() -> list[float]:
    """One is zero."""
    drawn = torch.randn(len(LENGTHS), generator=torch.Generator().manual_seed(8)).tolist()
    return [*drawn[:4], 0.0, *drawn[5:]]


def of_rank(step: list[ScoredRollout], rank: int, size: int) -> list[ScoredRollout]:
    """What rank `rank` has of the step: the tokens that it holds itself."""

    def had(item: ScoredRollout) -> ScoredRollout:
        holder = item.rollout.holder % size
        response = item.rollout.completion if holder == rank else item.rollout.completion.without_tokens()
        return replace(item, rollout=replace(item.rollout, completion=response, holder=holder))

    return [had(item) for item in step]


def product(parallel: ParallelConfig, folder: Path, case: Case, step: list[ScoredRollout]) -> dict[str, Any]:
    """What the step reports, and the logits of all tokens in a row after it."""
    from megatron_ring.algorithm.budget import select_budget
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages
    from megatron_ring.rollout.metrics import update_metrics
    from megatron_ring.rollout.packing import pack_step
    from megatron_ring.rollout.policy_update import PolicyUpdate
    from megatron_ring.rollout.select import Selection, budget_order, response_lengths, step_updates
    from megatron_ring.run.stage import open_model, resolve_shape
    from megatron_ring.training.trainer import Trainer

    config = make_config(case)
    options = TrainedModelOptions(parallel=parallel, precision="fp32", router=RouterLossConfig(0.0, 0.0))
    stage = open_model(options, resolve_shape(None, folder), folder)
    trainer = Trainer(stage.model, stage.context, ADAM)
    policy = PolicyUpdate(config, trainer, pad_id=0, folder=Path("nowhere"))
    kept = of_rank(step, stage.context.data_rank, stage.context.data_size)
    budget = PHI if config.objective.has_budget else None
    order = budget_order(config, 0, kept, advantages())
    trained = select_budget(response_lengths(kept), budget, order).trained
    selection = Selection(kept, advantages(), trained, None, step_updates(config, trained, order))
    updates = pack_step(selection, config, policy.loss.objective, stage.model, stage.context, 0)
    metrics = update_metrics(policy.train(policy.annotate_updates(updates), LR), budget, selection.kl)
    metrics |= policy.loss.take_ratios(stage.context.device)
    tokens = torch.tensor([token for item in step for token in item.rollout.completion.tokens])
    with torch.no_grad():
        logits = forward_all_stages(stage.model.eval(), tokens, PackedLayout(torch.arange(len(tokens)), [len(tokens)]))
    assert logits is not None
    return {"metrics": metrics, "logits": logits[:, : SHAPE.vocab_size]}


def pieces_by_hand(case: Case) -> list[dict[int, tuple[int, int]]]:
    """For each update: response -> first and last trained token (behind it)."""
    if case.name != "c3po":  # 44 tokens: the shares end at 14.7 and 29.3
        whole = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
        return [{index: (0, LENGTHS[index]) for index in part} for part in whole]
    order = sorted(range(len(LENGTHS)), key=lambda index: -LENGTHS[index])
    tokens = [(index, token) for index in order for token in range(LENGTHS[index])][:PHI]
    size, parts = PHI // case.updates, []
    for start in range(0, PHI, size):
        part = tokens[start : start + size]
        found = {index: [token for other, token in part if other == index] for index, _ in part}
        parts.append({index: (min(mine), max(mine) + 1) for index, mine in found.items()})
    return parts


class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019), after clipping to a norm; float64. Vectors do not decay."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights, self.count = weights, 0
        self.first = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.second = {name: torch.zeros_like(value) for name, value in weights.items()}

    def update(self, loss: torch.Tensor) -> float:
        found = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True)
        gradients = {name: torch.zeros_like(self.weights[name]) if g is None else g
                     for name, g in zip(self.weights, found, strict=True)}  # fmt: skip
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
        self.count += 1
        with torch.no_grad():
            for name, weight in self.weights.items():
                g = gradients[name] * min(1.0, ADAM.clip_grad / (norm + 1e-6))
                self.first[name] = ADAM.beta1 * self.first[name] + (1 - ADAM.beta1) * g
                self.second[name] = ADAM.beta2 * self.second[name] + (1 - ADAM.beta2) * g * g
                mean = self.first[name] / (1 - ADAM.beta1**self.count)
                spread = (self.second[name] / (1 - ADAM.beta2**self.count)).sqrt()
                if weight.ndim > 1:
                    weight -= LR * ADAM.weight_decay * weight
                weight -= LR * mean / (spread + ADAM.eps)
        return norm


def oracle(folder: Path, case: Case, step: list[ScoredRollout]) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    weights = {name: value.double().requires_grad_() for name, value in load_file(folder / "model.safetensors").items()}
    adam, figures = AdamW(weights), []

    def distribution(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rollout = step[index].rollout
        tokens = torch.tensor([*rollout.prompt_tokens, *rollout.completion.tokens])
        rows = reference_logits(tokens, weights, config).log_softmax(-1)[1:-1]
        return rows, rows[range(LENGTHS[index]), tokens[2:]]

    with torch.no_grad():
        before = [distribution(index)[1] for index in range(len(LENGTHS))]  # also the reference
    for pieces in pieces_by_hand(case):
        responses = []
        for index, (begin, end) in sorted(pieces.items()):
            rows, logprobs = distribution(index)
            sampler = torch.tensor(list(step[index].rollout.completion.logprobs), dtype=torch.float64)
            old = sampler if case.old == "sampler" else before[index]
            responses.append(Response(
                logprobs=logprobs[begin:end], entropy=-(rows.exp() * rows).sum(-1)[begin:end], old=old[begin:end],
                sampler=sampler[begin:end], ref=before[index][begin:end], advantage=advantages()[index],
            ))  # fmt: skip
        loss = LOSSES[case.name](responses, Constants(low=case.low, high=case.high))
        figures.append(measured(case, responses) | {"grad_norm": adam.update(loss)})
    tokens = torch.tensor([token for item in step for token in item.rollout.completion.tokens])
    with torch.no_grad():
        after = reference_logits(tokens, weights, config)
        start = reference_logits(tokens, load_file(folder / "model.safetensors"), config)
    return {"updates": figures, "logits": after, "before": start}


def measured(case: Case, responses: list[Response]) -> dict[str, float]:
    """Of one update: trained tokens, clipped ones, the ratio; sums of KL and entropy."""
    ratios, clipped = [], 0
    for response in responses:
        log_ratio = (response.logprobs - response.old).detach()
        log_ratio = log_ratio.mean().expand(len(response)) if case.name == "gspo" else log_ratio
        ratios += log_ratio.exp().tolist()
        above, below = log_ratio.exp() > 1 + case.high, log_ratio.exp() < 1 - case.low
        clipped += int((above if response.advantage > 0 else below & (response.advantage < 0)).sum())
    kl = sum((torch.exp(r.ref - r.logprobs) - (r.ref - r.logprobs) - 1).sum().item() for r in responses)
    return {"tokens": len(ratios), "clipped": clipped, "ratio_mean": sum(ratios) / len(ratios), "kl": kl,
            "ratio_max": max(max(ratio, 1 / ratio) for ratio in ratios),
            "entropy": sum(r.entropy.sum().item() for r in responses)}  # fmt: skip


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES, ids=["sampler", "recomputed", "gspo"])
def test_updates_of_a_step_are_those_in_float64(run_on, folder: Path, step: list[ScoredRollout], case: Case) -> None:
    wanted = oracle(folder, case, step)
    updates, tokens = wanted["updates"], sum(update["tokens"] for update in wanted["updates"])
    moved = (wanted["logits"] - wanted["before"]).abs().max()
    assert moved > 0.1 and sum(update["clipped"] for update in updates) > 0
    for layout in ("one", "dp2"):
        processes, parallel = LAYOUTS[layout]
        for found in run_on(processes, product, parallel, folder, case, step):
            metrics = found["metrics"]
            assert metrics["tokens/trained"] == tokens == metrics["tokens/budget"]
            for number, update in enumerate(updates, start=1):
                assert metrics[f"tokens/trained/update_{number}"] == update["tokens"]
                assert metrics[f"clip_fraction/update_{number}"] == pytest.approx(update["clipped"] / update["tokens"])
                assert metrics[f"ratio/mean/update_{number}"] == pytest.approx(update["ratio_mean"], rel=2e-4)
                assert metrics[f"ratio/max/update_{number}"] == pytest.approx(update["ratio_max"], rel=1e-3)
                assert metrics[f"grad_norm/update_{number}"] == pytest.approx(update["grad_norm"], rel=1e-3)
            assert metrics["grad_norm"] == pytest.approx(max(update["grad_norm"] for update in updates), rel=1e-3)
            assert metrics["kl"] == pytest.approx(sum(update["kl"] for update in updates) / tokens, rel=1e-3)
            assert metrics["entropy"] == pytest.approx(sum(update["entropy"] for update in updates) / tokens, rel=1e-4)
            assert sum(metrics["mismatch/log_k"].counts) == updates[0]["tokens"]
            assert (found["logits"] - wanted["logits"]).abs().max() < 2e-3 * moved, layout
