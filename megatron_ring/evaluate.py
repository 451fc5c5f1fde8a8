"""Evaluation: sample responses to held-out prompts, score them with the verifiers, write result.json and samples.jsonl.

torchrun --nproc-per-node 8 -m megatron_ring.evaluate --checkpoint DIR --prompts FILE --tokenizer DIR --out DIR
torchrun … -m megatron_ring.evaluate --checkpoint DIR --suite ring-lite --benchmark-dir DIR --tokenizer DIR --out DIR
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:
    from megatron_ring.config.model import ModelConfig
    from megatron_ring.data.records import PromptRecord
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.rollout.records import ScoredRollout
    from megatron_ring.rollout.scored_rows import ScoredRows
    from megatron_ring.run.stage import Stage


def main(config: EvaluateConfig) -> None:
    if config.dry_run:
        from megatron_ring.planning.stages import plan_evaluate

        if config.prompts is None:
            prepare()
            from megatron_ring.rollout.benchmark_stage import announce_benchmarks

            announce_benchmarks(config)
        return plan_evaluate(config)
    prepare()
    if config.prompts is None:
        from megatron_ring.rollout.benchmark_stage import evaluate_benchmarks

        return evaluate_benchmarks(config)
    from megatron_ring.data.writing import write_atomically
    from megatron_ring.parallel import collectives
    from megatron_ring.rollout.evaluation import summarize, told
    from megatron_ring.rollout.scored_rows import ScoredRows
    from megatron_ring.run.lock import hold_lock
    from megatron_ring.run.stage import open_model, other_ends, resolve

    config, shape, tokenizer = resolve(config)
    if collectives.is_main():
        for remark in other_ends(config, tokenizer):
            print(f"evaluate: {remark}", flush=True)
    records = read_problems(config, shape, tokenizer)

    def row(item: ScoredRollout) -> dict[str, Any]:
        return sample_row(item, records[item.rollout.prompt_index], tokenizer)

    with ExitStack() as held:
        collectives.from_main(lambda: hold_lock(config.out, held))
        stage = open_model(config, shape, config.checkpoint)
        began, identity = time.perf_counter(), deciding(config, stage, tokenizer)
        with ScoredRows(config.out, identity, stage.context, row, config.restart) as rows:
            sample_and_score(config, records, stage, tokenizer, rows)
        collectives.barrier()
        if not stage.context.is_main:
            return
        found = summarize(rows.write(config.out / "samples.jsonl", len(records) * config.samples_per_problem))
        about = {"checkpoint": str(config.checkpoint), "prompts": str(config.prompts)}
        result = {**about, **identity, **found, "seconds": time.perf_counter() - began}
        write_atomically(config.out / "result.json", (json.dumps(result, indent=1) + "\n").encode())
        rows.remove()
        print(f"evaluate: {told(result)} -> {config.out}/result.json")


def deciding(config: EvaluateConfig, stage: Stage, tokenizer: RingTokenizer) -> dict[str, Any]:
    """All that decides the scores: a result can be told from another of its name."""
    from megatron_ring.checkpoint.identity import weights_fingerprint
    from megatron_ring.rewards.composition import fingerprint
    from megatron_ring.rollout.scoring_content import scoring_content

    sampling, composed, judge = config.sampling, config.rewards.compositions, config.rewards.judge
    judging = {name: getattr(judge, name) for name in ("model", "temperature", "max_tokens", "again")} if judge.given else {}
    assert config.prompts is not None
    return {
        "checkpoint_fingerprint": weights_fingerprint(config.checkpoint),
        "prompts_sha256": hashlib.sha256(config.prompts.read_bytes()).hexdigest(),
        "fields": list(config.fields),
        "domain": config.domain,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "instruction": config.instruction,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "max_new_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
        "stop_strings": list(sampling.stop_strings),
        "repetition_tokens": sampling.repetition_tokens,
        "repetition_ngram": sampling.repetition_ngram,
        "sampling_weights": sampling.weights,
        "sampling_activations": None if sampling.activations == "bf16" else sampling.activations,
        "seed": config.seed,
        "samples_per_problem": config.samples_per_problem,
        "precision": str(stage.model.config.params_dtype).removeprefix("torch."),
        "layer_impl": config.layer_impl,
        "exact": config.exact,
        "time_limit": config.rewards.time_limit,
        "compositions": None if composed is None else fingerprint(composed),
        **{f"rewards.{name}": known for name, known in scoring_content(config.rewards).items()},
        **{f"rewards.judge.{name}": value for name, value in judging.items()},
    }


def read_problems(config: EvaluateConfig, shape: ModelConfig, tokenizer: RingTokenizer) -> list[PromptRecord]:
    """The prompts; `UserError` for one without a verifier or room for a response, and where no result can be written."""
    from megatron_ring.data.fields import PROMPT_FIELDS, Fields
    from megatron_ring.data.files import read_prompt_file
    from megatron_ring.data.prompts import check_texts, too_long
    from megatron_ring.data.schedule import PromptSource
    from megatron_ring.data.writing import check_target
    from megatron_ring.parallel import collectives
    from megatron_ring.rollout.scoring import check_prompts

    assert config.prompts is not None
    file = read_prompt_file(config.prompts, Fields.of(config, PROMPT_FIELDS, "--fields"), "--fields")
    records = file.records
    if file.note and collectives.is_main():
        print(f"evaluate: {file.note}", flush=True)
    check_prompts([PromptSource("evaluation", config.prompts, tuple(records))], config.rewards)
    check_texts(records, tokenizer, config.instruction)
    new = config.sampling.max_new_tokens
    problem = too_long(records, tokenizer, config.instruction, shape.max_positions - new)
    room = f"--sampling.max-new-tokens {new:,} leave room for {max(0, shape.max_positions - new):,}"
    require(problem is None, f"--prompts: {problem}, and {room}")
    collectives.from_main(lambda: check_target(config.out / "result.json", "--out"))
    return records


def sample_and_score(
    config: EvaluateConfig, records: Sequence[PromptRecord], stage: Stage, tokenizer: RingTokenizer, rows: ScoredRows
) -> None:
    """Add to `rows` what they lack: responses to all prompts with their rewards. All processes take part."""
    from megatron_ring.data.prompts import StreamPrompt
    from megatron_ring.rollout.evaluation import evaluate_prompts
    from megatron_ring.rollout.scoring import open_scorer
    from megatron_ring.run.progress import Progress
    from megatron_ring.sampler.sampler import Sampler

    context = stage.context
    prompts = [StreamPrompt(position, record) for position, record in enumerate(records)]
    lacking = len(prompts) * config.samples_per_problem - len(rows.done)
    if rows.done and context.is_main:
        print(f"evaluate: {len(rows.done):,} responses are in {config.out} already, {lacking:,} are not", flush=True)
    sampler = Sampler(stage.model, context, config.sampling, tokenizer.eos_id, tokenizer.decode)
    domains, replies = {record.domain for record in records}, config.out / "judge"
    with (
        open_scorer(config.rewards, domains, tokenizer, context, sampler, replies) as scorer,
        Progress("evaluate", -(-lacking // context.data_size), 0, context.is_main, unit="response") as progress,
    ):
        evaluate_prompts(
            prompts, sampler, tokenizer, scorer, samples=config.samples_per_problem, seed=config.seed,
            instruction=config.instruction, on_progress=progress.update, done=rows.done, on_scored=rows.add,
        )  # fmt: skip


def sample_row(item: ScoredRollout, record: PromptRecord, tokenizer: RingTokenizer) -> dict[str, Any]:
    """A response as samples.jsonl has it."""
    from megatron_ring.data.records import tools_of

    return {
        "id": item.rollout.prompt_id,
        "domain": item.rollout.domain,
        "prompt": record.prompt,
        **tools_of(record.messages),
        "response": tokenizer.decode(item.rollout.completion.tokens),
        "answer": record.answer,
        "reward": item.reward,
        "reason": item.reason,
        "finish_reason": item.rollout.finish_reason,
        "tokens": item.rollout.response_length,
        "sample": item.rollout.sample,
        **({"detail": dict(item.detail)} if item.detail else {}),
    }


def read_flags() -> EvaluateConfig:
    """The command line. Raises `UserError`."""
    config = parse(EvaluateConfig, "ring-evaluate", "Sample and score held-out prompts, or published benchmarks.")
    given = sum(argument.split("=")[0] == "--benchmark" for argument in sys.argv[1:])
    require(given < 2, "--benchmark is given twice, and the last one alone would count: put all NAME=PATH behind one")
    return config


def cli() -> None:
    run_main(lambda: main(read_flags()))


if __name__ == "__main__":
    cli()
