"""Evaluation: sample responses to held-out prompts, score them with the verifiers, write result.json and samples.jsonl.

torchrun --nproc-per-node 8 -m megatron_ring.evaluate --checkpoint DIR --prompts FILE --tokenizer DIR --out DIR
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.optimizer import RouterLossConfig
from megatron_ring.errors import run_main

if TYPE_CHECKING:
    from megatron_ring.data.records import PromptRecord
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.rollout.records import ScoredRollout


def main(config: EvaluateConfig) -> None:
    if config.dry_run:
        from megatron_ring.planning.stages import plan_evaluate

        return plan_evaluate(config)
    from megatron_ring.checkpoint.saving import checkpoint_folder
    from megatron_ring.run.stage import resolve_shape

    config = replace(config, checkpoint=checkpoint_folder(config.checkpoint))
    shape = resolve_shape(None, config.checkpoint)

    from megatron_ring.data.files import read_prompts
    from megatron_ring.data.prompts import StreamPrompt, too_long
    from megatron_ring.data.schedule import PromptSource
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.data.writing import check_target, write_atomically
    from megatron_ring.parallel.context import rank_from_environment
    from megatron_ring.rollout.evaluation import evaluate_prompts, summarize
    from megatron_ring.rollout.lines import write_lines
    from megatron_ring.rollout.scoring import check_prompts, open_scorer
    from megatron_ring.run.progress import Progress
    from megatron_ring.run.stage import set_first_weights, start_stage
    from megatron_ring.sampler.sampler import Sampler

    tokenizer = RingTokenizer.load(config.tokenizer)
    require(
        tokenizer.vocab_size <= shape.vocab_size,
        f"--tokenizer {config.tokenizer}: {tokenizer.vocab_size} tokens, the model has only {shape.vocab_size}",
    )
    records = read_prompts(config.prompts)
    check_prompts([PromptSource("evaluation", config.prompts, tuple(records))], config.rewards)
    new = config.sampling.max_new_tokens
    found = too_long(records, tokenizer, config.instruction, shape.max_positions - new)
    said = f"and --sampling.max-new-tokens {new:,} leave room for {max(0, shape.max_positions - new):,}"
    require(found is None, f"--prompts: {found}, {said}")
    if rank_from_environment() == 0:
        check_target(config.out / "result.json", "--out")
    prompts = [StreamPrompt(position, record) for position, record in enumerate(records)]
    losses = RouterLossConfig(0.0, 0.0)
    stage = start_stage(shape, config.parallel, losses, config.seed, config.precision, config.layer_impl, exact=config.exact)
    set_first_weights(stage, config.checkpoint, config.seed)
    began = time.perf_counter()
    sampler = Sampler(stage.model, stage.context, config.sampling, tokenizer.eos_id, tokenizer.decode)
    mine = len(prompts[stage.context.data_rank :: stage.context.data_size]) * config.samples_per_problem
    with (
        open_scorer(config.rewards, {prompt.record.domain for prompt in prompts}, tokenizer, stage.context) as scorer,
        Progress("evaluate", mine, 0, stage.context.is_main, unit="response") as progress,
    ):
        scored = evaluate_prompts(
            prompts, sampler, tokenizer, scorer, samples=config.samples_per_problem, seed=config.seed,
            instruction=config.instruction, on_progress=progress.update,
        )  # fmt: skip
    result = {
        "checkpoint": str(config.checkpoint),
        "prompts": str(config.prompts),
        "temperature": config.sampling.temperature,
        "top_p": config.sampling.top_p,
        "max_new_tokens": config.sampling.max_new_tokens,
        "seed": config.seed,
        "samples_per_problem": config.samples_per_problem,
        **summarize(scored),
        "seconds": time.perf_counter() - began,
    }

    def row(_: int, item: ScoredRollout) -> dict[str, Any]:
        return sample_row(item, records[item.rollout.prompt_index], tokenizer)

    write_lines(config.out / "samples.jsonl", scored, row, stage.context)
    if not stage.context.is_main:
        return
    write_atomically(config.out / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    print(f"evaluate: pass@1 {result['pass_at_1']:.3f} on {result['problems']} problems -> {config.out}/result.json")


def sample_row(item: ScoredRollout, record: PromptRecord, tokenizer: RingTokenizer) -> dict[str, Any]:
    """A response as samples.jsonl has it."""
    return {
        "id": item.rollout.prompt_id,
        "domain": item.rollout.domain,
        "prompt": record.prompt,
        "response": tokenizer.decode(item.rollout.completion.tokens),
        "answer": record.answer,
        "reward": item.reward,
        "reason": item.reason,
        "finish_reason": item.rollout.finish_reason,
        "tokens": item.rollout.response_length,
        "sample": item.rollout.sample,
        **({"detail": dict(item.detail)} if item.detail else {}),
    }


def cli() -> None:
    run_main(lambda: main(parse(EvaluateConfig, "ring-evaluate", "Sample and score held-out prompts.")))


if __name__ == "__main__":
    cli()
