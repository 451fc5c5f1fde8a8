#!/usr/bin/env python
"""Write a Hugging Face (`bailing_moe`) folder of random weights in a published shape, to try conversion and loading with.

    python tools/make_random_hf.py --preset ring-lite --out DIR      # 33.6 GB; --layers 4 for a slice
    python tools/make_random_hf.py --head score --out DIR            # a reward model

One tensor at a time: memory is bounded by the largest.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from megatron_ring.config.declarations import parameter_counts
from megatron_ring.config.presets import PRESETS, get_preset
from megatron_ring.errors import UserError, run_main
from megatron_ring.parallel import prepare


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="ring-lite", help=f"model shape: {', '.join(PRESETS)} (default: ring-lite)")
    parser.add_argument("--layers", type=int, help="only so many layers (default: all of the preset)")
    parser.add_argument(
        "--head", choices=("vocabulary", "score"), default="vocabulary",
        help="what follows the last layer: a language model's vocabulary, or a reward model's score (default: vocabulary)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="dtype of the tensors (default: bf16)")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest file (GB = 10^9 bytes; default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    shape = replace(get_preset(args.preset), head=args.head)
    if args.layers is not None:
        shape = replace(shape, num_layers=args.layers)
    if args.shard_gb <= 0:
        raise UserError(f"--shard-gb is {args.shard_gb}, it must be positive")
    prepare()
    import torch

    from megatron_ring.checkpoint.convert import whole_or_nothing
    from megatron_ring.checkpoint.hf_config import config_json
    from megatron_ring.checkpoint.hf_folder import write_code
    from megatron_ring.checkpoint.safetensors_stream import Announced, write_shards
    from megatron_ring.checkpoint.tensor_rules import kept_dtype, rules_for
    from megatron_ring.checkpoint.weights import draw
    from megatron_ring.run.progress import Progress

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    rules = rules_for(shape)
    announced = [Announced(rule.source, kept_dtype(rule.source, dtype), rule.shape) for rule in rules]
    drawn = (draw(rule, shape.init_std, args.seed) for rule in rules)
    contents = (tensor.to(one.dtype) for tensor, one in zip(drawn, announced, strict=True))
    total = sum(tensor.nbytes for tensor in announced)
    with whole_or_nothing(args.out) as folder, Progress("random weights", total, unit="byte") as progress:
        write_shards(folder, announced, contents, int(args.shard_gb * 1e9), progress.advance)
        config = config_json(shape, dtype, shape.vocab_size - 1, shape.vocab_size - 1)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        write_code(folder)
    print(f"wrote {parameter_counts(shape)[0]:,} random parameters ({total / 1e9:.1f} GB) to {args.out}")


if __name__ == "__main__":
    run_main(main)
