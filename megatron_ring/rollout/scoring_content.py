"""What the models that score are, told by their content: their shapes, and the fingerprints that a run keeps to."""

from __future__ import annotations

import hashlib
import json

from megatron_ring.checkpoint.identity import weights_fingerprint
from megatron_ring.config.checks import require
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.rewards import RewardConfig
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.judging.protocol import PROTOCOLS
from megatron_ring.parallel import collectives
from megatron_ring.rollout.policy_judge import judge_shape
from megatron_ring.run.stage import find_weights, resolve_shape


def scorer_shapes(config: RewardConfig) -> dict[str, ModelConfig]:
    """Shapes of the models that lie beside the policy, by what they are called. Raises `UserError`."""
    shapes = {}
    if config.reward_model is not None:
        shapes["reward model"] = reward_model_shape(config)
    if config.judge.checkpoint is not None:
        shapes["judge"] = judge_shape(config)
    return shapes


def reward_model_shape(config: RewardConfig) -> ModelConfig:
    """The shape of the reward model. Raises `UserError`."""
    assert config.reward_model is not None
    try:
        shape = resolve_shape(None, config.reward_model)
    except UserError as error:
        raise UserError(f"--rewards.reward-model: {error}") from None
    said = f"--rewards.reward-model {config.reward_model}: a language model, which has no score: give a reward model"
    require(shape.head == "score", said)
    return shape


def scoring_content(config: RewardConfig) -> dict[str, str]:
    """Fingerprints of the reward model and the judge, by their settings' names in `RewardConfig`. Of a server nothing but
    the model's name is known, which is a setting of its own. All ranks call it. Raises `UserError`."""

    def read() -> dict[str, str]:
        judge, found = config.judge, {}
        if config.reward_model is not None:
            found["reward_model"] = weights_fingerprint(find_weights(config.reward_model))
        if judge.checkpoint is not None:
            found["judge.checkpoint"] = weights_fingerprint(find_weights(judge.checkpoint))
        if judge.tokenizer is not None:
            found["judge.tokenizer"] = RingTokenizer.load(judge.tokenizer, judge.chat_template).fingerprint
        if judge.given:
            prompts = json.dumps([protocol.describe() for protocol in PROTOCOLS.values()], sort_keys=True)
            found["judge"] = hashlib.blake2b(prompts.encode(), digest_size=16).hexdigest()
        return found

    return collectives.from_main(read)
