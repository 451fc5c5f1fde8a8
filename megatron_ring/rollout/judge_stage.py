"""The judge's part of an evaluation of benchmarks: who judges, what, and what comes of it. After the sampling, so that the
same folder can be judged later, or by another judge; each judge has a file of its own in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from megatron_ring.benchmarks.alignbench import totals
from megatron_ring.benchmarks.scoring import WAITS, Outcome
from megatron_ring.benchmarks.thinking import scored_text
from megatron_ring.config.checks import require
from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.judge import JudgeSettings
from megatron_ring.data.writing import write_atomically
from megatron_ring.judging.cache import ReplyCache
from megatron_ring.judging.client import Server
from megatron_ring.judging.figures import summarize
from megatron_ring.judging.protocol import PROTOCOLS, Case, Generate, Judgement, judge
from megatron_ring.judging.server import ServerJudge
from megatron_ring.parallel import collectives
from megatron_ring.rollout.baseline_answers import read_baseline
from megatron_ring.rollout.journal import Key, judge_file, read_journals
from megatron_ring.rollout.judge_sampler import CheckpointAsked, JudgeModel, SamplerJudge
from megatron_ring.rollout.plans import Task
from megatron_ring.run.progress import Progress

KEY = "RING_JUDGE_KEY"
FOLDER = "responses"


@dataclass(frozen=True)
class Judging:
    """A judge and what it is to judge.

    Attributes:
        identity: of the judge alone, which decides its replies.
        about: all that decides verdicts: goes into the result.
        model: a checkpoint that judges; None: a server does.
        baseline: answers by problem.
    """

    tasks: tuple[Task, ...]
    identity: dict[str, Any]
    about: dict[str, Any]
    model: JudgeModel | None
    baseline: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """12 hex digits of `about`."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:12]


def open_judging(config: EvaluateConfig, tasks: Sequence[Task]) -> Judging | None:
    """What the flags say of a judge; None where they give none. All ranks call it, before anything is sampled: a judge that
    cannot be had is told at once. Raises `UserError`."""
    if not config.judge.given:
        return None
    judged = tuple(task for task in tasks if task.benchmark.judged)
    require(bool(judged), "--judge: none of these benchmarks is judged: leave it out")
    baseline, digest = _baseline(config, judged)
    model = JudgeModel.resolve(config) if config.judge.checkpoint is not None else None
    if model is None:
        server = server_of(config.judge)
        identity = server.identity()
        collectives.from_main(ServerJudge(server, _cache(config, identity)).check)
    else:
        identity = _identity_of(model)
    protocols = {task.benchmark.name: PROTOCOLS[task.benchmark.judged].describe() for task in judged}
    about = {**identity, "protocols": protocols, "baseline": str(config.judge.baseline or ""), "baseline_sha256": digest}
    return Judging(judged, identity, about, model, baseline)


def server_of(judge: JudgeSettings) -> Server:
    """The server that the flags and the environment name."""
    assert judge.url is not None and judge.model is not None
    return Server(
        judge.url, judge.model, judge.temperature, judge.max_tokens, os.environ.get(KEY) or None, judge.concurrency,
        judge.requests_per_minute, judge.timeout, (f"{judge.group}.url", f"{judge.group}.model"),
    )  # fmt: skip


def _identity_of(model: JudgeModel) -> dict[str, Any]:
    from megatron_ring.checkpoint.identity import weights_fingerprint

    config = model.config
    return {
        "checkpoint": str(config.checkpoint), "weights": weights_fingerprint(config.checkpoint),
        "tokenizer": model.tokenizer.fingerprint, "precision": config.precision, "seed": config.seed,
        "temperature": config.sampling.temperature, "max_tokens": config.sampling.max_new_tokens,
    }  # fmt: skip


def _baseline(config: EvaluateConfig, judged: Sequence[Task]) -> tuple[dict[str, str], str]:
    pairs = [task for task in judged if task.benchmark.judged == "pairwise"]
    path = config.judge.baseline
    if not pairs:
        require(path is None, "--judge.baseline is of arena-hard, which is not measured: leave it out")
        return {}, ""
    require(path is not None, "--judge.baseline is missing: arena-hard compares with the answers of another model")
    assert path is not None
    return read_baseline(path, pairs[0].benchmark.name, pairs[0].problems)


def judge_outcomes(
    judging: Judging, config: EvaluateConfig, outcomes: Sequence[Outcome]
) -> tuple[list[Outcome], dict[str, dict[str, Any]]]:
    """All outcomes, with the judge's scores where they waited for one, and the judge's figures by benchmark. Where a server
    judges, the main rank alone works, and the others have their outcomes back as they are.

    Raises:
        UserError: on every rank that works.
    """
    if judging.model is None and not collectives.is_main():
        return list(outcomes), {}
    cache = _cache(config, judging.identity)
    speaks = collectives.is_main()
    responses = _responses(config, everywhere=judging.model is not None)
    waiting = [outcome for outcome in outcomes if outcome.reason == WAITS and outcome.score is None]
    progress = Progress("judge", len(waiting), 0, speaks, unit="reply")

    def report(done: int, asked: int) -> None:
        progress.total = asked
        progress.update(done)

    generate: Generate
    if judging.model is None:
        generate = ServerJudge(server_of(config.judge), cache, report=report)
    else:
        sampler, shape = judging.model.open(), judging.model.shape
        asked = CheckpointAsked(sampler, judging.model.tokenizer, shape.max_positions, judging.model.config.seed)
        generate = SamplerJudge(asked, cache, report)
    found: dict[Key, tuple[Outcome, Judgement]] = {}
    figures = {}
    with progress if waiting else nullcontext():
        for task in judging.tasks:
            own = [outcome for outcome in waiting if outcome.benchmark == task.benchmark.name]
            protocol = PROTOCOLS[task.benchmark.judged]
            cases = _cases(judging, task, own, responses)
            judgements = judge(protocol, cases, generate)
            cut = sum(outcome.benchmark == task.benchmark.name and outcome.truncated for outcome in outcomes)
            cut -= sum(outcome.truncated for outcome in own)
            figures[task.benchmark.name] = {**protocol.describe(), **summarize(protocol, cases, judgements, cut)}
            if task.benchmark.name == "alignbench":
                settled = [(one.category, one.score) for one in outcomes if one.benchmark == "alignbench"]
                given = [(one.category, item.score) for one, item in zip(own, judgements, strict=True)]
                figures["alignbench"] |= totals((name, score) for name, score in settled + given if score is not None)
            for outcome, item in zip(own, judgements, strict=True):
                found[_key(outcome)] = replace(outcome, score=item.score, reason=item.reason), item
    if speaks:
        _write(judging, config, list(found.values()))
    return [found[_key(outcome)][0] if _key(outcome) in found else outcome for outcome in outcomes], figures


def _key(outcome: Outcome) -> Key:
    return outcome.benchmark, outcome.id, outcome.sample


def _responses(config: EvaluateConfig, everywhere: bool) -> dict[Key, str]:
    """Texts by key, without thinking."""

    def read() -> dict[Key, str]:
        rows = read_journals(config.out / FOLDER)[0]
        return {key: scored_text(row["response"], row["opened"]) or "" for key, row in rows.items()}

    return collectives.from_main(read) if everywhere else read()


def _cases(judging: Judging, task: Task, own: Sequence[Outcome], responses: dict[Key, str]) -> list[Case]:
    problems = {problem.id: problem for problem in task.problems}
    pairs = task.benchmark.judged == "pairwise"
    return [
        Case(
            problems[outcome.id].prompt, responses[_key(outcome)], str(problems[outcome.id].answer),
            judging.baseline[outcome.id] if pairs else "", tuple(problems[outcome.id].metadata.get("dimensions", ())),
        )
        for outcome in own
    ]  # fmt: skip


def _write(judging: Judging, config: EvaluateConfig, found: Sequence[tuple[Outcome, Judgement]]) -> None:
    """The judge's file: a score for each response, with its verdicts and why replies had none."""
    lines = [
        json.dumps(
            {
                **outcome.to_json(),
                "verdicts": item.verdicts,
                "problems": item.problems,
                **({"dimensions": item.dimensions} if item.dimensions else {}),
            }
        )
        for outcome, item in found
    ]
    write_atomically(judge_file(config.out / FOLDER, judging.fingerprint), "".join(f"{line}\n" for line in lines).encode())


def _cache(config: EvaluateConfig, identity: dict[str, Any]) -> ReplyCache:
    return ReplyCache(config.judge.cache or config.out / "judge", identity)
