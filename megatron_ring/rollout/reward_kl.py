"""KL in the reward: how far each sampled response lies from the reference, as a penalty on its reward."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ring.algorithm.kl import KLEstimator, kl_estimate
from megatron_ring.algorithm.sequences import sequence_sums
from megatron_ring.data.packing import policy_batch
from megatron_ring.data.sequences import PolicySequence
from megatron_ring.parallel import collectives
from megatron_ring.rollout.records import Rollout
from megatron_ring.rollout.sharding import deal_rollouts
from megatron_ring.training.reference import ReferencePolicy


class RewardKL:
    """Sums a KL estimate between the sampler's log-probabilities and the reference's over each whole response."""

    def __init__(self, reference: ReferencePolicy, estimator: KLEstimator, capacity: int, pad_id: int) -> None:
        """`capacity`: tokens of a micro-batch of the reference's pass, at most."""
        self.reference, self.estimator, self.capacity, self.pad_id = reference, estimator, capacity, pad_id

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """KL of each response in nats, the same on every rank; all ranks bring the same rollouts and take part.

        Raises:
            UserError: a rollout is longer than `capacity`.
        """
        lengths = [len(rollout.prompt_tokens) + rollout.response_length for rollout in rollouts]
        plan, tokens, completions = deal_rollouts(rollouts, lengths, self.capacity, 0, self.reference.trainer.context)

        def sequence(i: int) -> PolicySequence:
            prompt, completion = rollouts[i].prompt_tokens, completions[i]
            return PolicySequence(prompt, completion.tokens, completion.logprobs, 0.0, 1.0, completion.length)

        packs = [policy_batch([sequence(i) for i in places], tokens, self.pad_id) for places in plan]
        computed: dict[int, float] = {}
        for places, batch in zip(plan, self.reference.annotate(packs), strict=True):
            if batch.ref_logprobs is not None:
                kl = kl_estimate(batch.sampler_logprobs, batch.ref_logprobs, self.estimator)
                sums = sequence_sums(kl.double(), batch.loss_mask, batch.cu_seqlens).tolist()
                computed |= dict(zip(places, sums, strict=False))
        distances: dict[int, float] = {}
        for part in collectives.gather_over_data(computed):
            distances |= part
        distances = collectives.broadcast_object_from_last_stage(distances)
        return [distances[i] for i in range(len(rollouts))]
