"""The RL loss on the training step's side: an objective of room algorithm/ over a part of a micro-batch's tokens."""

from __future__ import annotations

import math
from typing import Any

import torch

from megatron_ring.algorithm.corrections import CORRECTIONS, Correction
from megatron_ring.algorithm.histogram import Histogram
from megatron_ring.algorithm.mismatch import ratio_edges, ratio_histogram, ratio_quantiles
from megatron_ring.algorithm.objective import Objective
from megatron_ring.algorithm.objectives import make_objective
from megatron_ring.algorithm.policy import policy_loss
from megatron_ring.algorithm.tokens import LossSettings, PolicyTokens
from megatron_ring.config.objective import CorrectionConfig, correction_defaults
from megatron_ring.config.rl import RLConfig
from megatron_ring.data.packing import PolicyBatch
from megatron_ring.parallel import collectives
from megatron_ring.training.loss_output import LossOutput

QUANTILES = {"k_p01": 0.01, "k_p10": 0.10, "k_p50": 0.50, "k_p90": 0.90, "k_p99": 0.99}


class PolicyLoss:
    """An objective's loss; figures are sums over trained tokens. It also counts how often each k, the model's probability
    of a token over the sampler's, comes before it, while `counts_ratios`."""

    def __init__(self, objective: Objective, settings: LossSettings, temperature: float) -> None:
        self.objective, self.settings, self.temperature = objective, settings, temperature
        self.counts_ratios = True
        self._ratios: torch.Tensor | None = None

    def __call__(self, logprobs: torch.Tensor, entropies: torch.Tensor, batch: PolicyBatch) -> LossOutput:
        tokens = PolicyTokens(
            logprobs=logprobs,
            entropy=entropies,
            old_logprobs=batch.sampler_logprobs if batch.old_logprobs is None else batch.old_logprobs,
            advantages=batch.advantages,
            mask=batch.loss_mask,
            weights=batch.weights,
            sampler_logprobs=batch.sampler_logprobs,
            ref_logprobs=batch.ref_logprobs,
            sequence_log_ratio=batch.sequence_log_ratio,
            corrections=batch.corrections,
        )
        if self.counts_ratios:
            ratios = ratio_histogram(logprobs.detach() - batch.sampler_logprobs)
            self._ratios = ratios if self._ratios is None else self._ratios + ratios
        loss, figures = policy_loss(self.objective, tokens, self.settings)
        maxima = {name: figures.pop(name) for name in list(figures) if name.endswith("_max")}
        return LossOutput(loss, sums=figures, maxima=maxima)

    def take_ratios(self, device: torch.device) -> dict[str, Any]:
        """k over the tokens of all ranks that were counted since the last call: its quantiles, and log k as a histogram. All
        ranks take part."""
        counts = torch.zeros(len(ratio_edges()) + 1, dtype=torch.int64) if self._ratios is None else self._ratios
        self._ratios = None
        counts = collectives.broadcast_from_last_stage(collectives.sum_over_data(counts.to(device)))
        figures: dict[str, Any] = dict(zip(QUANTILES, ratio_quantiles(counts, list(QUANTILES.values())), strict=True))
        figures["log_k"] = Histogram([-math.inf, *ratio_edges().tolist(), math.inf], counts.tolist())
        return {f"mismatch/{name}": value for name, value in figures.items()}


def make_policy_loss(config: RLConfig) -> PolicyLoss:
    """The loss that a resolved configuration asks for. A KL in the reward is no term of it."""
    chosen = config.objective
    assert chosen.clip is not None and chosen.clip_high is not None
    settings = LossSettings(
        clip_low=chosen.clip,
        clip_high=chosen.clip_high,
        kl_beta=chosen.kl_beta if chosen.kl_place == "loss" else 0.0,
        kl_estimator=chosen.kl_estimator,
        alpha_entropy=chosen.alpha_entropy,
        ratio_figures=config.updates_per_step > 1,
    )
    objective = make_objective(chosen.name, chosen.length_budget or config.sampling.max_new_tokens)
    return PolicyLoss(objective, settings, config.sampling.temperature)


def make_correction(config: CorrectionConfig) -> Correction | None:
    """The mismatch correction that a resolved configuration asks for."""
    if config.name not in CORRECTIONS:
        return None
    return CORRECTIONS[config.name](**{constant: getattr(config, constant) for constant in correction_defaults(config.name)})
