"""What an RL run holds for its updates beside model and optimizer: the loss, the passes before it, the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ring.config.rl import RLConfig
from megatron_ring.data.packing import PolicyBatch
from megatron_ring.rollout.records import ScoredRollout
from megatron_ring.rollout.reward_kl import RewardKL
from megatron_ring.training.first_pass import FirstPass
from megatron_ring.training.policy_loss import make_correction, make_policy_loss
from megatron_ring.training.reference import ReferencePolicy
from megatron_ring.training.trainer import StepResult, Trainer


class PolicyUpdate:
    """Build it while the model has the weights that RL starts from: the reference copies them."""

    def __init__(self, config: RLConfig, trainer: Trainer, pad_id: int, folder: Path) -> None:
        """`config` is resolved. `folder`: where references that were refreshed are kept for a continued run."""
        objective, place = config.objective, config.reference.place
        self.loss = make_policy_loss(config)
        self._trainer = trainer
        recompute = objective.old_logprobs == "recomputed"
        self._first_pass = FirstPass(trainer, self.loss, recompute, make_correction(config.correction))
        self._refresh_every, self._folder = config.reference.refresh_every, folder
        self.reference, self._reward_kl = None, None
        if place in ("device", "host"):
            self.reference = ReferencePolicy(trainer, config.sampling.temperature, place)
            if objective.kl_place == "reward":
                self._reward_kl = RewardKL(self.reference, objective.kl_estimator, config.data.micro_batch_tokens, pad_id)

    def reward_distances(self, scored: Sequence[ScoredRollout]) -> list[float] | None:
        """KL of each response from the reference (nats), where it is to be taken off the rewards; else None. All ranks take
        part."""
        return None if self._reward_kl is None else self._reward_kl([item.rollout for item in scored])

    def annotate(self, batches: Sequence[PolicyBatch]) -> list[PolicyBatch]:
        """The micro-batches with all log-probabilities that the loss needs beside its own."""
        annotated = self._first_pass.annotate(batches)
        if self.reference is not None and self._reward_kl is None:
            annotated = self.reference.annotate(annotated)
        return annotated

    def annotate_updates(self, updates: Sequence[Sequence[PolicyBatch]]) -> list[list[PolicyBatch]]:
        """`annotate` the micro-batches of all updates of a step, under the weights before the first."""
        ready = iter(self.annotate([batch for batches in updates for batch in batches]))
        return [[next(ready) for _ in batches] for batches in updates]

    def train(self, updates: Sequence[Sequence[PolicyBatch]], lr: float) -> list[StepResult]:
        """The updates of a step, one after another, from what `annotate_updates` gave; the figures of each.

        Raises:
            FloatingPointError: as of `Trainer.train_step`; the updates behind that one are left out.
        """
        results = []
        for number, batches in enumerate(updates):
            self.loss.counts_ratios = number == 0  # k compares sampler and trainer on the same weights
            ready = self._first_pass.renewed(batches) if number else batches
            results.append(self._trainer.train_step(ready, self.loss, lr))
        return results

    def finish(self, step: int) -> None:
        """Refresh the reference when its time has come; `step` steps have been made."""
        if self.reference is not None and self._refresh_every and step % self._refresh_every == 0:
            self.reference.refresh(step)

    def save(self) -> dict[str, Any]:
        """Write what a continued run needs, and return what its checkpoint must hold. The one before must be whole."""
        if self.reference is None:
            return {"reference": 0}
        self.reference.save(self._folder)
        return {"reference": self.reference.step}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where the run stood that `save` returned `state` to. Raises `UserError` when its reference is not there."""
        if self.reference is not None:
            self.reference.load(self._folder, state["reference"])
