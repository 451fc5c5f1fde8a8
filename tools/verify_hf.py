#!/usr/bin/env python
"""Load a Hugging Face folder (or a checkpoint) as training does and compare its logits with expected ones.

    python tools/verify_hf.py --hf DIR --expected FILE.safetensors [--tolerance 2e-5]
    torchrun --nproc-per-node 2 tools/verify_hf.py --hf DIR --expected FILE.safetensors --parallel.tensor 2

Prints one JSON object with the largest |difference| of the logits and, where the file holds them, of every layer's hidden
states and router logits. Exit status 1 when one of them is above the tolerance.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.stage import ModelOptions
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What is compared with what."""

    hf: Path
    """Hugging Face folder, or checkpoint, to load."""
    expected: Path
    """safetensors file: input_ids [B, S] and logits [B, S, vocab]; optionally hidden_states, router_logits."""
    tolerance: float = 2e-5
    """Largest |difference| allowed."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Parameters' dtype."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        require(self.tolerance >= 0, f"--tolerance is {self.tolerance}, below 0")


def main(config: VerifyConfig) -> int:
    prepare()
    from megatron_ring.checkpoint.parity import largest_differences
    from megatron_ring.checkpoint.safetensors_stream import read_header
    from megatron_ring.run.stage import open_model, resolve_shape

    shape = resolve_shape(None, config.hf)
    require(shape.head == "vocabulary", f"--hf {config.hf}: a reward model has no logits: see tools/score_rewards.py")
    expected = {name: tensor.read() for name, tensor in read_header(config.expected).items()}
    for name in ("input_ids", "logits"):
        require(name in expected, f"--expected {config.expected}: holds no {name}")
    tokens, logits = expected["input_ids"], expected["logits"]
    require(
        tokens.ndim == 2 and tuple(logits.shape) == (*tokens.shape, shape.vocab_size),
        f"--expected {config.expected}: input_ids {tuple(tokens.shape)} and logits {tuple(logits.shape)} do not fit a "
        f"vocabulary of {shape.vocab_size}",
    )
    require(
        tokens.numel() % config.parallel.tensor == 0,
        f"--parallel.tensor {config.parallel.tensor} does not divide the {tokens.numel()} tokens of {config.expected}",
    )
    stage = open_model(ModelOptions(parallel=config.parallel, precision=config.precision), shape, config.hf)
    differences = largest_differences(stage.model, stage.context, expected)
    passed = all(value <= config.tolerance for value in differences.values())
    if stage.context.is_main:
        result = {"max_abs_logit_difference": differences["logits"], "differences": differences,
                  "tolerance": config.tolerance, "passed": passed, "precision": config.precision,
                  "layout": asdict(config.parallel) | {"world_size": stage.context.world_size},
                  "hf": str(config.hf), "expected": str(config.expected)}  # fmt: skip
        print(json.dumps(result), flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    status: list[int] = []
    run_main(lambda: status.append(main(parse(VerifyConfig, "verify_hf.py", "Compare a model with expected logits."))))
    raise SystemExit(status[0])
