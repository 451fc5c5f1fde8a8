#!/usr/bin/env python
"""Convert between Hugging Face (`bailing_moe`) folders and this project's checkpoints, one tensor at a time.

    python tools/convert_hf.py import --hf DIR --out CKPT
    python tools/convert_hf.py export --checkpoint CKPT --out DIR [--like HF_DIR] [--tokenizer DIR] [--chat-template FILE]

Needs no GPU; memory is bounded by the largest tensor. Nothing is written unless everything is there, once, and of the right
shape. A checkpoint of any parallel layout is read; the one written is read by every layout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_ring.config.declarations import parameter_counts
from megatron_ring.errors import UserError, run_main
from megatron_ring.parallel import prepare

DTYPES = ("keep", "fp32", "bf16")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="Hugging Face folder -> checkpoint")
    importing.add_argument("--hf", type=Path, required=True, help="folder with config.json and safetensors")
    importing.add_argument("--out", type=Path, required=True, help="checkpoint folder to write; must not exist")
    importing.add_argument("--dtype", choices=DTYPES, default="keep", help="dtype of the weights (default: each tensor's)")
    exporting = commands.add_parser("export", help="checkpoint -> Hugging Face folder")
    exporting.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder (…/step_N)")
    exporting.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    exporting.add_argument("--like", type=Path, help="Hugging Face folder whose tokenizer, code and settings are taken")
    exporting.add_argument(
        "--tokenizer", type=Path, help="tokenizer folder or sentencepiece .model file that is taken (not that of --like)"
    )
    exporting.add_argument("--chat-template", type=Path, help="file of the chat template that goes with the tokenizer")
    exporting.add_argument(
        "--stop-token-ids", type=int, nargs="+", default=[], metavar="ID",
        help="tokens that end a response besides eos, as --sampling.stop-token-ids has them, for generation_config.json",
    )  # fmt: skip
    exporting.add_argument("--dtype", choices=DTYPES, default="keep", help="dtype of tensors (default: the checkpoint's)")
    exporting.add_argument("--shard-gb", type=float, default=5.0, help="largest file (GB = 10^9 bytes; default: 5)")
    for command in (importing, exporting):
        command.add_argument("--dry-run", action="store_true", help="check what is there, and write nothing")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    source = args.hf if args.command == "import" else args.checkpoint
    if args.dry_run and not source.exists():
        print(f"dry run of {args.command}: {source} -> {args.out}\nnot checked: {source}: not there")
        return
    prepare()
    import torch

    from megatron_ring.checkpoint import convert
    from megatron_ring.checkpoint.folder import checkpoint_folder
    from megatron_ring.checkpoint.manifest import model_config_of
    from megatron_ring.data.sentencepiece_model import tokenizer_folder
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.run.progress import Progress

    source = checkpoint_folder(source)
    dtype = {"keep": None, "fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    if args.out.exists():
        raise UserError(f"--out {args.out}: exists already; remove it or choose another folder")
    if args.dry_run:
        size = convert.bytes_to_import(source) if args.command == "import" else convert.bytes_to_export(source, dtype)
        print(f"dry run of {args.command}: {source} -> {args.out}\nchecked: {source}: {size / 1e9:,.2f} GB of tensors")
        return
    if args.command == "import":
        with Progress("import", convert.bytes_to_import(args.hf), unit="byte") as progress:
            model = convert.import_folder(args.hf, args.out, dtype, progress.advance)
    else:
        if args.shard_gb <= 0:
            raise UserError(f"--shard-gb is {args.shard_gb}, it must be positive")
        special_ids = None
        if args.chat_template is not None and args.tokenizer is None and args.like is None:
            raise UserError("--chat-template is given without a tokenizer: give --tokenizer or --like")
        like_has_one = args.like is not None and (args.like / "tokenizer.json").is_file()
        for flag, folder in (("--tokenizer", args.tokenizer), ("--like", args.like if like_has_one else None)):
            if folder is not None:
                tokenizer, vocabulary = RingTokenizer.load(folder, args.chat_template), model_config_of(source).vocab_size
                if tokenizer.vocab_size > vocabulary:
                    raise UserError(f"{flag} {folder}: {tokenizer.vocab_size:,} tokens, the model has only {vocabulary:,}")
                special_ids = (tokenizer.eos_id, tokenizer.pad_id) if flag == "--tokenizer" else None
                break
        given = args.tokenizer or (args.like if args.chat_template is not None else None)
        with (
            tokenizer_folder(given, args.chat_template) as folder,
            Progress("export", convert.bytes_to_export(source, dtype), unit="byte") as progress,
        ):
            model = convert.export_checkpoint(
                source, args.out, like=args.like, tokenizer=folder, special_ids=special_ids,
                stop_ids=args.stop_token_ids, dtype=dtype, shard_bytes=int(args.shard_gb * 1e9), on_bytes=progress.advance,
            )  # fmt: skip
    total, active = parameter_counts(model)
    print(f"{args.command}ed {total:,} parameters ({active:,} activated) to {args.out}")


if __name__ == "__main__":
    run_main(main)
