#!/usr/bin/env python
"""Score a file with a reward model: preferences, RewardBench 1 or 2 by their published rules, or conversations.

    python tools/score_rewards.py --checkpoint runs/reward/checkpoints/latest --tokenizer DIR --input FILE --out DIR
    torchrun --nproc-per-node 8 tools/score_rewards.py … --parallel.expert 8

Writes result.json (accuracy by subset, calibration, length; or the benchmark's scores) and rewards.jsonl, a line a row.
"""

from __future__ import annotations

import json

from megatron_ring.config.cli import parse
from megatron_ring.config.reward_model import ScoreConfig
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare


def main(config: ScoreConfig) -> None:
    prepare()
    from megatron_ring.checkpoint.identity import weights_fingerprint
    from megatron_ring.data.writing import check_target, write_atomically
    from megatron_ring.parallel import collectives
    from megatron_ring.reward_models.score_file import file_figures, read_score_file, regrouped, tokenized
    from megatron_ring.reward_models.scoring import score_sequences
    from megatron_ring.run.progress import Progress
    from megatron_ring.run.stage import open_model, resolve

    config, shape, tokenizer = resolve(config)
    file = read_score_file(config)
    texts = tokenized(file, config, tokenizer, shape.max_positions)
    collectives.from_main(lambda: check_target(config.out / "result.json", "--out"))
    stage = open_model(config, shape, config.checkpoint)
    context = stage.context
    if file.note and context.is_main:
        print(f"score_rewards: {file.note}", flush=True)
    share = -(-len(texts.sequences) // context.data_size)
    with Progress("score_rewards", share, 0, context.is_main, unit="conversation") as progress:
        rewards = score_sequences(
            stage.model, context, texts.sequences, config.batch_tokens, tokenizer.pad_id, progress.update
        )  # fmt: skip
    scored = regrouped(file, rewards, texts.lengths)
    if not context.is_main:
        return
    result = {
        "checkpoint": str(config.checkpoint),
        "checkpoint_fingerprint": weights_fingerprint(config.checkpoint),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "precision": str(stage.model.config.params_dtype).removeprefix("torch."),
        **file_figures(config, file),
        "conversations": len(rewards),
        "tokens": sum(map(len, texts.sequences)),
        "cut": texts.cut,
        **file.judge(scored),
    }
    lines = [
        json.dumps({**item.said, "rewards": one.rewards, "answer_tokens": one.lengths}) + "\n"
        for item, one in zip(file.items, scored, strict=True)
    ]
    write_atomically(config.out / "rewards.jsonl", "".join(lines).encode())
    write_atomically(config.out / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    figures = {name: result[name] for name in ("score", "accuracy", "ece", "reward_mean") if result.get(name) is not None}
    told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    print(f"score_rewards: {told or 'nothing to say'} on {len(file.items)} rows -> {config.out}/result.json")


if __name__ == "__main__":
    run_main(lambda: main(parse(ScoreConfig, "score_rewards.py", "Score a file with a reward model.")))
