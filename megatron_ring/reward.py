"""A reward model: a language model whose head is replaced by one number, trained on preferences by Bradley and Terry's loss.

    torchrun --nproc-per-node 8 -m megatron_ring.reward --run-dir runs/reward --init-from DIR --data.train FILE …

The same command continues a run that was stopped. Exit status: 0 when the run is done, 2 for a mistake, 3 when an alarm
stopped it, 75 when a signal did (torchrun turns each into 1 of its own).
"""

from __future__ import annotations

from megatron_ring.config.cli import parse
from megatron_ring.config.reward_model import RewardModelConfig
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare


def main(config: RewardModelConfig) -> None:
    if config.dry_run:
        from megatron_ring.planning.stages import plan_reward

        return plan_reward(config)
    prepare()
    from megatron_ring.data.preference_data import load_preferences
    from megatron_ring.reward_models.training import Preferences
    from megatron_ring.run.epochs import run_epochs

    run_epochs(
        config,
        lambda config, tokenizer, shape: load_preferences(config.data, tokenizer, config.seed, shape.max_positions),
        Preferences,
    )


def cli() -> None:
    run_main(lambda: main(parse(RewardModelConfig, "ring-reward", "A reward model from preferences.")))


if __name__ == "__main__":
    cli()
