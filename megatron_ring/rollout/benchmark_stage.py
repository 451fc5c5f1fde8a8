"""`evaluate` on benchmarks: reads their files, samples and scores what the folder does not hold yet, writes the result
and its page."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from megatron_ring.analysis.benchmarks_page import benchmarks_page
from megatron_ring.benchmarks.result import measure
from megatron_ring.benchmarks.scoring import Outcome
from megatron_ring.config.checks import require
from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.rollout.benchmark_files import read_tasks

if TYPE_CHECKING:
    from megatron_ring.config.model import ModelConfig
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.parallel.context import ParallelContext
    from megatron_ring.rewards import RewardPool
    from megatron_ring.rollout.judge_stage import Judging
    from megatron_ring.rollout.plans import Plan, Task
    from megatron_ring.run.stage import Stage

FOLDER = "responses"


def announce_benchmarks(config: EvaluateConfig) -> None:
    """For a dry run: what would be measured, by the files that are there. Raises `UserError` for a file of no use."""
    folder = config.benchmark_dir
    if folder is not None and not folder.exists():
        print(f"not checked: --benchmark-dir {folder}: not there", flush=True)
    else:
        _announce(*read_tasks(config), config.judge.given)


def evaluate_benchmarks(config: EvaluateConfig) -> None:
    """The main, after `parallel.prepare`. Raises `UserError`."""
    from megatron_ring.data.writing import check_target
    from megatron_ring.parallel import collectives
    from megatron_ring.rollout.journal import settle_identity
    from megatron_ring.rollout.judge_stage import judge_outcomes, open_judging
    from megatron_ring.run.lock import hold_lock
    from megatron_ring.run.stage import open_model, resolve

    config, shape, tokenizer = resolve(config)
    tasks, missing = read_tasks(config)
    if collectives.is_main():
        _announce(tasks, missing, config.judge.given)
    _check_prompts(tasks, config, shape, tokenizer)
    judging = open_judging(config, tasks)
    identity = _identity(config, tokenizer, tasks)
    collectives.from_main(lambda: check_target(config.out / "result.json", "--out"))
    with ExitStack() as held:
        collectives.from_main(lambda: hold_lock(config.out, held))
        collectives.from_main(lambda: settle_identity(config.out / FOLDER, identity))
        stage = open_model(config, shape, config.checkpoint)
        began = time.perf_counter()
        plans = _run(config, tasks, stage, tokenizer)
        outcomes = [outcome for plan in plans for outcome in plan.counted]
        budgets = {plan.task.benchmark.name: plan.describe() for plan in plans}
        figures: dict[str, dict[str, Any]] = {}
        del stage  # the judge may be a model of its own
        if judging is not None:
            outcomes, figures = judge_outcomes(judging, config, outcomes)
        if collectives.is_main():
            seconds = time.perf_counter() - began
            _write(config, _measured(tasks, outcomes, figures, budgets), identity, judging, missing, seconds)


def _measured(
    tasks: Sequence[Task], outcomes: Sequence[Outcome], figures: Mapping[str, dict[str, Any]],
    budgets: Mapping[str, dict[str, Any] | None],
) -> list[dict[str, Any]]:  # fmt: skip
    """What result.json says of each benchmark."""
    parts = []
    for task in tasks:
        own = [outcome for outcome in outcomes if outcome.benchmark == task.benchmark.name]
        part = {**task.source, **measure(task.benchmark, task.problems, own)}
        if task.benchmark.name in figures:
            part["judge"] = figures[task.benchmark.name]
        budget = budgets[task.benchmark.name]
        if budget is not None:
            part["budget"] = budget
        parts.append(part)
    return parts


def _write(
    config: EvaluateConfig, parts: Sequence[dict[str, Any]], identity: dict[str, Any], judging: Judging | None,
    missing: Sequence[str], seconds: float,
) -> None:  # fmt: skip
    """result.json, its page, and a line for each benchmark."""
    from megatron_ring.data.writing import write_atomically

    sampling = identity.pop("sampling")
    judge = None if judging is None else {"fingerprint": judging.fingerprint, **judging.about}
    result = {
        "checkpoint": str(config.checkpoint), "suite": config.suite, "missing": missing, "sampling": sampling, **identity,
        "judge": judge, "benchmarks": parts, "seconds": seconds,
    }  # fmt: skip
    write_atomically(config.out / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(config.out / "report.html", benchmarks_page(result).encode())
    for part in parts:
        print(f"evaluate: {part['title']}: {_said(part)}")
        for line in _said_of_budget(part.get("budget")):
            print(f"evaluate: {part['title']}: {line}")
    print(f"evaluate: {config.out}/result.json, {config.out}/report.html")


def _said(part: dict[str, Any]) -> str:
    judge = part.get("judge")
    if part["score"] is None and judge:
        why = next(iter(judge["failures"]), "nothing was sampled")
        return f"no score: the judge failed on {judge['judge_failed']:,} responses ({why})"
    if part["score"] is None:
        waits = f"{part['no_verdict']:,} responses wait for a judge"
        return waits if part["responses"] else "no response fits into --token-budget: raise it"
    error = "" if part["standard_error"] is None else f" ± {100 * part['standard_error']:.2f}"
    counts = ", ".join(f"{part[name]:,} {name.replace('_', ' ')}" for name in ("truncated", "unparsed", "no_verdict"))
    if judge and judge["length_correlation"] is not None:
        counts += f", rank correlation with length {judge['length_correlation']:.2f}"
    return f"{100 * part['score']:.2f}{error} ({part['metric']}), {part['responses']:,} responses, {counts}"


def _said_of_budget(budget: dict[str, Any] | None) -> Iterator[str]:
    """A line for each rule, and one for the two at equal tokens."""
    if budget is None:
        return
    for rule, found in budget["rules"].items():
        error = "" if found["standard_error"] is None else f" ± {100 * found['standard_error']:.2f}"
        yield (
            f"{rule}: majority {100 * found['score']:.2f}{error} for {found['spent']:,} of {budget['tokens']:,} tokens, "
            f"{found['samples']['mean']:.1f} responses a problem, {found['decided']:,} decided, {found['unanswered']:,} "
            f"without a response; ended: {found['ended']}"
        )
    equal = budget.get("at_equal_tokens")
    if equal is not None:
        yield (
            f"adaptive minus uniform at {equal['tokens']:,} tokens: {100 * equal['difference']:.2f} "
            f"({100 * equal['low']:.2f} to {100 * equal['high']:.2f})"
        )


def _announce(tasks: Sequence[Task], missing: Sequence[str], with_judge: bool) -> None:
    for task in tasks:
        notes = "".join(f"; {note}" for note in task.source["notes"])
        print(f"evaluate: {task.benchmark.title}: {task.size}{notes}", flush=True)
        if task.benchmark.judged and not with_judge:
            print(f"evaluate: {task.benchmark.title} needs --judge: its responses are written, and not scored", flush=True)
    if missing:
        print(f"evaluate: no file for {', '.join(missing)}", flush=True)


def _check_prompts(tasks: Sequence[Task], config: EvaluateConfig, shape: ModelConfig, tokenizer: RingTokenizer) -> None:
    """Raise `UserError` for a prompt that cannot be asked, or leaves no room for a response."""
    from megatron_ring.data.prompts import check_texts, too_long
    from megatron_ring.data.records import PromptRecord

    new = config.sampling.max_new_tokens
    room = f"--sampling.max-new-tokens {new:,} leave room for {max(0, shape.max_positions - new):,}"
    for task in tasks:
        name = task.benchmark.name
        records = [PromptRecord(item.id, name, item.prompt, "", place=item.place) for item in task.problems]
        check_texts(records, tokenizer, config.instruction)
        problem = too_long(records, tokenizer, config.instruction, shape.max_positions - new)
        require(problem is None, f"--benchmark {name}: {problem}, and {room}")


def _identity(config: EvaluateConfig, tokenizer: RingTokenizer, tasks: Sequence[Task]) -> dict[str, Any]:
    """What decides the responses and scores besides the layout: a folder holds those of one such set alone."""
    from megatron_ring.checkpoint.identity import weights_fingerprint

    sampling = config.sampling
    return {
        "weights": weights_fingerprint(config.checkpoint),
        "tokenizer": tokenizer.fingerprint,
        "problems": {task.benchmark.name: task.source["problems_sha256"] for task in tasks},
        "instruction": config.instruction,
        "seed": config.seed,
        "time_limit": config.rewards.time_limit,
        "precision": config.precision,
        "sampling": {
            "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p,
            "max_new_tokens": sampling.max_new_tokens, "stop_token_ids": list(sampling.stop_token_ids),
            "stop_strings": list(sampling.stop_strings), "repetition_tokens": sampling.repetition_tokens,
            "repetition_ngram": sampling.repetition_ngram,
            **({} if sampling.weights == "bf16" else {"weights": sampling.weights}),
            **({} if sampling.activations == "bf16" else {"activations": sampling.activations}),
        },
    }  # fmt: skip


def _run(config: EvaluateConfig, tasks: Sequence[Task], stage: Stage, tokenizer: RingTokenizer) -> list[Plan]:
    from megatron_ring.rollout.suite import run_suite
    from megatron_ring.sampler.sampler import Sampler

    sampler = Sampler(stage.model, stage.context, config.sampling, tokenizer.eos_id, tokenizer.decode)
    with _workers(config, tasks, stage.context) as workers:
        return run_suite(
            tasks, sampler, tokenizer, workers, config.out / FOLDER, seed=config.seed, instruction=config.instruction
        )


@contextmanager
def _workers(config: EvaluateConfig, tasks: Sequence[Task], context: ParallelContext) -> Iterator[RewardPool | None]:
    """Verifiers of this replica, up; None where it is not the leader. Raises `UserError`, on every rank, where they cannot
    work here."""
    from megatron_ring.errors import UserError
    from megatron_ring.parallel import collectives
    from megatron_ring.rewards import RewardPool

    domains = {problem.domain for task in tasks for problem in task.problems if problem.domain}
    pool, problem = None, None
    try:
        if context.leads_replica:
            pool = RewardPool(config.rewards.workers, config.rewards.time_limit, unsafe_code=config.rewards.unsafe_code)
            pool.start(domains)
    except UserError as error:
        problem = str(error)
    try:
        problems = [other for other in collectives.gather_over_world(problem) if other is not None]
        if problems:
            raise UserError(problems[0])
        yield pool
    finally:
        if pool is not None:
            pool.close()
