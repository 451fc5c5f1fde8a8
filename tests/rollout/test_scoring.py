"""Rewards of a sampling do not outlive it: real responses, real verifiers, and weights that are broken for one token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.rewards import RewardConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.data.prompts import StreamPrompt
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.tokenizer import RingTokenizer, train_bpe
from megatron_ring.errors import NotFiniteError
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
