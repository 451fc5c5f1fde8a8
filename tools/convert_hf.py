#!/usr/bin/env python
"""Convert between Hugging Face (`bailing_moe`) folders and this project's checkpoints.

    python tools/convert_hf.py import --hf DIR --out CKPT
    python tools/convert_hf.py export --checkpoint CKPT --out DIR [--like HF_DIR] [--tokenizer DIR]

Checkpoints of any parallel layout are read. The whole model must fit this process's memory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatron_ring.errors import UserError, run_main

DTYPES = ("keep", "fp32", "bf16")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="Hugging Face folder -> checkpoint")
    importing.add_argument("--hf", type=Path, required=True, help="folder with config.json and safetensors")
    importing.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    importing.add_argument("--dtype", choices=DTYPES[1:], default="bf16", help="dtype of the parameters (default: bf16)")
    exporting = commands.add_parser("export", help="checkpoint -> Hugging Face folder")
    exporting.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder (…/step_N)")
    exporting.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    exporting.add_argument("--like", type=Path, help="Hugging Face folder whose tokenizer and config extras are taken")
    exporting.add_argument("--tokenizer", type=Path, help="tokenizer directory to put into the folder")
    exporting.add_argument("--dtype", choices=DTYPES[1:], default="bf16", help="dtype of the tensors (default: bf16)")
    return parser.parse_args()


def import_folder(args: argparse.Namespace) -> None:
    from megatron_ring.checkpoint import hf_format
    from megatron_ring.checkpoint.training_state import save_checkpoint
    from megatron_ring.config import ParallelConfig, RouterLossConfig
    from megatron_ring.training.stage import set_first_weights, start_stage

    if args.out.exists():
        raise UserError(f"--out {args.out}: exists already; remove it or choose another folder")
    shape, _ = hf_format.read_config(args.hf)
    stage = start_stage(shape, ParallelConfig(), RouterLossConfig(0.0, 0.0), 0, args.dtype)
    set_first_weights(stage, args.hf, 0)
    written = save_checkpoint(args.out.parent, 0, stage.model, None, stage.context, {}, name=args.out.name)
    total, active = shape.parameter_counts()
    print(f"imported {total:,} parameters ({active:,} activated) into {written}")


def export_folder(args: argparse.Namespace) -> None:
    import torch

    from megatron_ring.checkpoint import hf_format
    from megatron_ring.checkpoint.training_state import model_config_of
    from megatron_ring.checkpoint.weights import published_tensors
    from megatron_ring.config import ParallelConfig, RouterLossConfig
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.training.stage import set_first_weights, start_stage

    if args.out.exists():
        raise UserError(f"--out {args.out}: exists already; remove it or choose another folder")
    shape = model_config_of(args.checkpoint)
    tokenizer_dir = args.tokenizer or args.like
    eos_id = pad_id = shape.vocab_size - 1
    if tokenizer_dir is not None:
        tokenizer = RingTokenizer.load(tokenizer_dir)
        eos_id, pad_id = tokenizer.eos_id, tokenizer.pad_id
    stage = start_stage(shape, ParallelConfig(), RouterLossConfig(0.0, 0.0), 0, args.dtype)
    set_first_weights(stage, args.checkpoint, 0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    config = hf_format.config_json(shape, dtype, eos_id, pad_id)
    if args.like is not None:
        like = json.loads((args.like / "config.json").read_text())
        config = {**like, **config, **{key: like[key] for key in ("auto_map", "transformers_version") if key in like}}
    hf_format.write_folder(args.out, published_tensors(stage.model, stage.context), config, tokenizer_dir)
    print(f"exported {shape.parameter_counts()[0]:,} parameters to {args.out}")


def main() -> None:
    args = parse_args()
    import_folder(args) if args.command == "import" else export_folder(args)


if __name__ == "__main__":
    run_main(main)
