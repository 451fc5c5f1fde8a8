"""Long-CoT supervised fine-tuning: packed conversations, loss on responses, one checkpoint per epoch.

    torchrun --nproc-per-node 8 -m megatron_ring.sft --run-dir runs/sft --init-from DIR --data.train FILE …

The same command continues a run that was stopped.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.sft import SFTConfig
from megatron_ring.errors import UserError, run_main

if TYPE_CHECKING:  # rooms that import torch load when a run starts, so that --help answers at once
    from megatron_ring.data.sft_data import SFTDataset
    from megatron_ring.training.trainer import StepResult

MAY_DIFFER = frozenset({"run_dir", "max_steps", "save_every", "keep_last", "async_save", "layer_impl", "recompute", "exact"})


def main(config: SFTConfig) -> None:
    if config.dry_run:
        from megatron_ring.planning.stages import plan_sft

        return plan_sft(config, load_data)
    from megatron_ring.checkpoint.saving import CheckpointSaver, checkpoint_folder, latest_checkpoint
    from megatron_ring.run.stage import resolve_shape

    if config.init_from is not None:
        config = replace(config, init_from=checkpoint_folder(config.init_from))
    shape = resolve_shape(config.preset, config.init_from)

    from megatron_ring.checkpoint.loading import load_checkpoint
    from megatron_ring.run.directory import RunDirectory
    from megatron_ring.run.progress import Progress
    from megatron_ring.run.stage import set_first_weights, start_stage
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    train, validation = load_data(config, shape)
    stage = start_stage(
        shape, config.parallel, config.router, config.seed, config.precision, config.layer_impl,
        config.recompute, config.exact,
    )  # fmt: skip
    context = stage.context
    config.check(context.data_size)
    run = RunDirectory(config.run_dir, writes=context.is_main)
    run.open("sft", config, MAY_DIFFER)
    set_first_weights(stage, config.init_from, config.seed)
    trainer = Trainer(stage.model, context, config.optimizer)
    start, tokens = 0, 0
    checkpoint = latest_checkpoint(run.checkpoints)
    if checkpoint is not None:
        start, extra = load_checkpoint(checkpoint, stage.model, context, trainer.optimizer)
        tokens = extra["tokens"]
    run.start_logging(start)

    loss = SFTLoss()
    per_epoch = train.steps_per_epoch
    schedule_steps = config.epochs * per_epoch
    total = min(schedule_steps, config.max_steps or schedule_steps)
    if context.is_main:
        describe(train, start)
    with (
        CheckpointSaver(run.checkpoints, context, config.keep_last, config.async_save) as saver,
        Progress("sft", total, start, context.is_main) as progress,
    ):
        for step in range(start, total):
            began = time.perf_counter()
            epoch, place = divmod(step, per_epoch)
            batches = train.batch(epoch, place, context.data_rank, context.data_size)
            lr = config.optimizer.lr_at(step, schedule_steps)
            result = trainer.train_step(batches, loss, lr)
            tokens += result.routed_tokens
            metrics = step_metrics(result, step + 1, per_epoch, tokens, lr, time.perf_counter() - began)
            ends_epoch = place + 1 == per_epoch
            saves = ends_epoch or step + 1 == total or (config.save_every and (step + 1) % config.save_every == 0)
            if ends_epoch and validation is not None:
                metrics |= evaluate(trainer, validation, loss)
            if saves:
                metrics["checkpoint"] = f"step_{step + 1}"
            run.log(metrics)  # before the save: a run continued from this checkpoint finds its own line
            if saves:
                saver.save(step + 1, stage.model, trainer.optimizer, {"tokens": tokens})
            saver.check()
            progress.update(step + 1, f"loss {metrics['loss']:.3f} entropy {metrics['entropy']:.3f}")
    run.close()


def load_data(config: SFTConfig, shape: ModelConfig) -> tuple[SFTDataset, SFTDataset | None]:
    """The packed training and validation conversations; `UserError` names the file that is at fault."""
    from megatron_ring.data.files import read_sft
    from megatron_ring.data.sft_data import SFTDataset
    from megatron_ring.data.tokenizer import RingTokenizer

    data = config.data
    tokenizer = RingTokenizer.load(data.tokenizer)
    require(
        tokenizer.vocab_size <= shape.vocab_size,
        f"--data.tokenizer {data.tokenizer}: {tokenizer.vocab_size} tokens, the model has only {shape.vocab_size}",
    )

    def load(path: Path) -> SFTDataset:
        try:
            records = read_sft(path)
            return SFTDataset(records, tokenizer, data.context_length, data.global_batch, config.seed, data.overlong)
        except UserError as error:
            raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None

    return load(data.train), load(data.validation) if data.validation else None


def describe(train: SFTDataset, start: int) -> None:
    """Tell the user what will be trained."""
    dropped = f", {train.dropped} too long and left out" if train.dropped else ""
    resumed = f", continuing after step {start}" if start else ""
    tokens = f"{train.tokens:,} tokens ({train.loss_tokens:,} trained)"
    print(
        f"sft: {train.sequences} conversations{dropped}, {tokens} in {train.steps_per_epoch} steps an epoch{resumed}",
        flush=True,
    )


def step_metrics(result: StepResult, step: int, per_epoch: int, tokens: int, lr: float, seconds: float) -> dict[str, Any]:
    """One line of metrics.jsonl. `step` counts from 1; `tokens` are all trained so far, padding not counted."""
    return {
        "step": step,
        "epoch": step / per_epoch,
        "tokens": tokens,
        "loss": result.mean("loss"),
        "entropy": result.mean("entropy"),
        "grad_norm": result.grad_norm,
        "lr": lr,
        "attention": result.attention,
        "loss/balance": result.balance,
        "loss/z": result.z,
        "time/step": seconds,
        "throughput/tokens_per_second": result.routed_tokens / seconds,
    }


def evaluate(trainer: Any, validation: Any, loss: Any) -> dict[str, float]:
    """Mean loss and entropy per response token of the validation file."""
    context = trainer.context
    sums = {"loss": 0.0, "entropy": 0.0}
    tokens = 0
    for step in range(validation.steps_per_epoch):
        result = trainer.evaluate(validation.batch(0, step, context.data_rank, context.data_size), loss)
        sums = {name: value + result.sums[name] for name, value in sums.items()}
        tokens += result.loss_tokens
    means = {f"validation/{name}": value / max(1, tokens) for name, value in sums.items()}
    return means | {"validation/tokens": tokens, "validation/perplexity": math.exp(means["validation/loss"])}


def cli() -> None:
    run_main(lambda: main(parse(SFTConfig, "ring-sft", "Long-CoT supervised fine-tuning of a Ring MoE.")))


if __name__ == "__main__":
    cli()
