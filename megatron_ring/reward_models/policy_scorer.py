"""The domain `reward-model`: responses of the policy scored by a scalar reward model, as a batch scorer.

The reward model lies beside the policy, under the same layout and in the same dtype. Its memory is weights alone: it is
frozen. With --rewards.offload these are in host memory while it does not score. Rewards are raw scores; advantages compare
them within a group.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ring.config.checks import require
from megatron_ring.data.preference_data import conversation_tokens
from megatron_ring.data.records import Message
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.model.ring_model import build_model
from megatron_ring.parallel import collectives
from megatron_ring.reward_models.scoring import score_sequences
from megatron_ring.rewards.batch import BatchItem
from megatron_ring.rewards.interface import RAW_SCORE, Reward
from megatron_ring.rollout.scoring_content import reward_model_shape
from megatron_ring.run.stage import Stage, find_weights, set_first_weights
from megatron_ring.training.frozen import FrozenWeights


def check_tokenizer(folder: Path, tokenizer: RingTokenizer, said: str) -> None:
    """Refuse a published folder whose own tokenizer has another vocabulary; `said` names the flag. Of a checkpoint nothing
    but its size is known."""
    if (folder / "tokenizer.json").is_file():
        own = RingTokenizer.load(folder).vocabulary_fingerprint
        mend = "give one that was trained with this tokenizer"
        require(own == tokenizer.vocabulary_fingerprint, f"{said}: its tokenizer has another vocabulary: {mend}")


class RewardModelScorer:
    """Scores a prompt and its response as one conversation, closed with the end-of-text token that training put there."""

    def __init__(self, resources: Any) -> None:
        """Load the reward model of --rewards.reward-model. All ranks take part.

        Args:
            resources: `rollout.scoring.ScorerResources`.

        Raises:
            UserError: it is no reward model of this tokenizer and layout.
        """
        source, context = resources.config.reward_model, resources.context
        assert source is not None, "check_settings"
        folder = collectives.from_main(functools.partial(find_weights, source))
        shape = collectives.from_main(functools.partial(reward_model_shape, resources.config))
        said = f"--rewards.reward-model {source}"
        collectives.from_main(functools.partial(check_tokenizer, folder, resources.tokenizer, said))
        known = resources.tokenizer.vocab_size
        require(known <= shape.vocab_size, f"{said}: {shape.vocab_size} tokens, the tokenizer has {known}")
        context.config.check(shape, context.world_size)
        dtype = resources.sampler.model.config.params_dtype
        model = build_model(shape, context, dtype=dtype).requires_grad_(False).eval()
        set_first_weights(Stage(context, model, shape), folder, seed=0)
        self.model, self.context, self.tokenizer = model, context, resources.tokenizer
        self.weights, self.make_room = FrozenWeights(model, resources.config.offload), resources.sampler.release
        self.capacity, self.positions = resources.config.reward_model_tokens, shape.max_positions

    def score(self, items: Sequence[BatchItem]) -> list[Reward]:
        sequences, cut = [], []
        for item in items:
            prompt, response = item.request.prompt, Message("assistant", item.request.response)
            asked = [Message("user", prompt)] if isinstance(prompt, str) else [Message(**turn) for turn in prompt]
            tokens, _ = conversation_tokens((*asked, response), self.tokenizer, controls=True)
            sequences.append(tokens[-self.positions :])
            cut.append(len(tokens) > self.positions)
        pad = self.tokenizer.pad_id
        with self.weights.present(self.make_room):
            rewards = score_sequences(self.model, self.context, sequences, self.capacity, pad, of_all_ranks=False)
        return [
            Reward(reward, f"reward model: {reward:.3f}" + (", its beginning cut off" if short else ""), {RAW_SCORE: True})
            for reward, short in zip(rewards, cut, strict=True)
        ]
