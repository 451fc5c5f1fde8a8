"""Named model shapes. `ring-lite` is the published one; `ring-tiny` trains on a laptop's CPU."""

from __future__ import annotations

import difflib
from dataclasses import replace

from megatron_ring.config.model import ModelConfig
from megatron_ring.errors import UserError

RING_LITE = ModelConfig(
    num_layers=28, hidden_size=2048, num_attention_heads=16, num_key_value_heads=4, head_dim=128, vocab_size=126_464,
    num_experts=64, experts_per_token=6, expert_width=1408, num_shared_experts=2, dense_width=5632,
)  # fmt: skip

RING_TINY = ModelConfig(
    num_layers=2, hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=512,
    num_experts=8, experts_per_token=2, expert_width=96, num_shared_experts=1, dense_width=256,
    rope_theta=10_000.0, max_positions=1024, init_std=0.05,
)  # fmt: skip

PRESETS: dict[str, ModelConfig] = {
    "ring-lite": RING_LITE,
    "ring-lite-slice-4": replace(RING_LITE, num_layers=4),
    "ring-lite-slice-8": replace(RING_LITE, num_layers=8),
    "ring-tiny": RING_TINY,
}


def get_preset(name: str) -> ModelConfig:
    """The model shape called `name`; `UserError` lists the names when there is none."""
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"--preset {name}: no such preset{hint} (there are: {', '.join(PRESETS)})")
