"""The result of a benchmark: all that result.json says of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from megatron_ring.benchmarks.metrics import mean_and_error, summarize
from megatron_ring.benchmarks.problem import FORM_VERSION, Benchmark, Problem
from megatron_ring.benchmarks.scoring import Outcome, same_answer
from megatron_ring.benchmarks.table import PUBLISHED
from megatron_ring.benchmarks.votes import Same

MATH_LIKE = ("math", "science")


def has_votes(benchmark: Benchmark, problems: Sequence[Problem]) -> bool:
    """Whether its answers can be equal, so that they have a majority: programs, instructions and judged texts have none."""
    return not benchmark.judged and (benchmark.score is not None or problems[0].domain in MATH_LIKE)


def same_of(problems: Sequence[Problem]) -> Same | None:
    """Whether two answers of this benchmark that are written otherwise are equal; None: equal ones are equal texts."""
    return same_answer if problems[0].domain in MATH_LIKE else None


def describe(benchmark: Benchmark, problems: Sequence[Problem], source: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a score besides the model: file, rows, prompt form.

    Args:
        source: `file`, `sha256`, `rows`, `notes`, and the window where there is one.
    """
    asked = json.dumps([[item.id, item.prompt, item.answer] for item in problems], sort_keys=True, default=str)
    return {
        "benchmark": benchmark.name, "title": benchmark.title, "metric": benchmark.metric, **source,
        "problems": len(problems), "prompt_form": FORM_VERSION,
        "problems_sha256": hashlib.sha256(asked.encode(errors="surrogatepass")).hexdigest(),
    }  # fmt: skip


def measure(benchmark: Benchmark, problems: Sequence[Problem], outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """The metrics of all outcomes. Responses without a verdict are counted and excluded; problems without any, too."""
    groups: dict[str, list[Outcome]] = {problem.id: [] for problem in problems}
    for outcome in outcomes:
        if outcome.id in groups:
            groups[outcome.id].append(outcome)
    given = [sorted(group, key=lambda item: item.sample) for group in groups.values() if group]
    everything = [item for group in given for item in group]
    judged = [[item for item in group if item.score is not None] for group in given]
    judged = [group for group in judged if group]
    found: dict[str, Any] = {
        "responses": len(everything), "missing_problems": len(groups) - len(given),
        "truncated": sum(item.truncated for item in everything),
        "unparsed": sum(not item.parsed and not item.truncated for item in everything),
        "no_verdict": sum(item.score is None for item in everything),
        "tokens": sum(item.tokens for item in everything),
        "tokens_mean": sum(item.tokens for item in everything) / len(everything) if everything else None,
        "published": {paper: scores[benchmark.name] for paper, scores in PUBLISHED.items() if benchmark.name in scores},
    }  # fmt: skip
    if not judged:
        return {**found, "score": None, "standard_error": None}
    scores = [[float(item.score or 0) for item in group] for group in judged]
    found |= summarize(scores, [[item.given for item in group] for group in judged], same=same_of(problems))
    if benchmark.judged:  # no answer is plainly right, and none is equal to another
        found = {name: value for name, value in found.items() if name not in ("pass_at_k", "cons_at_n", "g_pass")}
    names = sorted({name for group in judged for item in group for name in item.variants})
    variants = {name: [[item.variants.get(name, 0.0) for item in group] for group in judged] for name in names}
    found["variants"] = {name: mean_and_error(values)[0] for name, values in variants.items()}
    found["by_category"] = _by_category(judged)
    return found


def _by_category(judged: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    parts: dict[str, list[list[float]]] = {}
    for group in judged:
        parts.setdefault(group[0].category, []).append([float(item.score or 0) for item in group])
    if len(parts) < 2:
        return {}
    measured = {name: (mean_and_error(groups), len(groups)) for name, groups in sorted(parts.items())}
    return {name: {"score": m[0], "standard_error": m[1], "problems": count} for name, (m, count) in measured.items()}
