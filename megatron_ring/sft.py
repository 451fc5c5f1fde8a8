"""Long-CoT supervised fine-tuning: packed conversations, loss on responses, one checkpoint per epoch.

    torchrun --nproc-per-node 8 -m megatron_ring.sft --run-dir runs/sft --init-from DIR --data.train FILE …

The same command continues a run that was stopped. Exit status: 0 when the run is done, 2 for a mistake, 3 when an alarm
stopped it, 75 when a signal did (torchrun turns each into 1 of its own).
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from megatron_ring.config.cli import parse
from megatron_ring.config.sft import SFTConfig
from megatron_ring.errors import run_main, say
from megatron_ring.parallel import prepare

if TYPE_CHECKING:  # rooms that import torch load when a run starts, so that --help answers at once
    from megatron_ring.corpus.conversations import SFTDataset
    from megatron_ring.training.trainer import StepResult, Trainer


def main(config: SFTConfig) -> None:
    if config.dry_run:
        from megatron_ring.planning.stages import plan_sft

        return plan_sft(config)
    prepare()
    from megatron_ring.corpus.conversations import load_datasets
    from megatron_ring.run.epochs import run_epochs

    run_epochs(
        config,
        lambda config, tokenizer, shape: load_datasets(
            config.data, tokenizer, config.seed, shape.max_positions, config.run_dir, functools.partial(say, "sft")
        ),
        lambda config, _, data, validation: Conversations(config, data, validation),
    )


class Conversations:
    """Conversations to imitate, as `run.epochs.EpochTask`."""

    def __init__(self, config: SFTConfig, data: SFTDataset, validation: SFTDataset | None) -> None:
        from megatron_ring.training.losses import SFTLoss

        self.config, self.data, self.validation, self.loss = config, data, validation, SFTLoss()
        self.steps_per_epoch, self.batch = data.steps_per_epoch, data.batch

    def introduction(self, start: int) -> list[str]:
        data = self.data
        dropped = f", {data.dropped} too long and left out" if data.dropped else ""
        dropped += f", {data.dropped_controls} with control tokens left out" if data.dropped_controls else ""
        resumed = f", continuing after step {start}" if start else ""
        tokens = f"{data.tokens:,} tokens ({data.loss_tokens:,} trained)"
        told = f"{data.sequences} conversations{dropped}, {tokens} in {data.steps_per_epoch} steps an epoch{resumed}"
        return [*([data.note] if data.note else []), told, f"the conversations lie tokenised in {data.folder}"]

    def step_metrics(self, result: StepResult) -> dict[str, Any]:
        return {"loss": result.mean("loss"), "entropy": result.mean("entropy")}

    def validate(self, trainer: Trainer, step: int) -> dict[str, Any]:
        """Mean loss and entropy per response token of the validation file."""
        context, validation = trainer.context, self.validation
        if validation is None:
            return {}
        sums = {"loss": 0.0, "entropy": 0.0}
        tokens = 0
        sizes = self.config.micro_batches(context.data_size)
        for place in range(validation.steps_per_epoch):
            batches = validation.batch(0, place, context.data_rank, context.data_size, sizes)
            result = trainer.evaluate(batches, self.loss)
            sums = {name: value + result.sums[name] for name, value in sums.items()}
            tokens += result.loss_tokens
        means = {f"validation/{name}": value / max(1, tokens) for name, value in sums.items()}
        return means | {"validation/tokens": tokens, "validation/perplexity": math.exp(means["validation/loss"])}

    def shown(self, metrics: dict[str, Any]) -> str:
        return f"loss {metrics.get('loss', math.nan):.3f} entropy {metrics.get('entropy', math.nan):.3f}"


def cli() -> None:
    run_main(lambda: main(parse(SFTConfig, "ring-sft", "Long-CoT supervised fine-tuning of a Ring MoE.")))


if __name__ == "__main__":
    cli()
