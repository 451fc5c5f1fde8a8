"""Two evaluations side by side: pass rates with intervals by domain, the paired gain, and problems to look at."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ring.analysis.read_run import Evaluation, Record, number, problem_key
from megatron_ring.analysis.statistics import Estimate, paired_difference, pass_rate, wilson_interval

SETTINGS = ("preset", "temperature", "top_p", "max_new_tokens", "samples_per_problem", "problems")


@dataclass(frozen=True)
class Row:
    """Pass rate of one domain (or of all problems) before and after RL; `gain` needs shared problems."""

    domain: str
    before: Estimate | None
    after: Estimate | None
    gain: Estimate | None


@dataclass(frozen=True)
class Pair:
    """The first sample of one problem before and after RL; `change` is the key of `CHANGES` it belongs to."""

    change: str
    before: Record
    after: Record


_CHANGE = {
    (False, True): "gained",
    (True, False): "lost",
    (True, True): "right both times",
    (False, False): "wrong both times",
}
CHANGES = tuple(_CHANGE.values())


def compare(before: Evaluation | None, after: Evaluation | None) -> list[Row]:
    """Rows for all problems together and, when there are several domains, for each; empty without evaluations."""
    given = [evaluation for evaluation in (before, after) if evaluation]
    if not given:
        return []
    domains = sorted({domain for evaluation in given for domain in _domains(evaluation)})
    rows = [_row(domains[0] if len(domains) == 1 else "all problems", None, before, after)]
    if len(domains) > 1:
        by_domain = [_row(domain, domain, before, after) for domain in domains]
        rows += [row for row in by_domain if row.before or row.after]  # a model's raw scores are no pass rate
    return rows


def _domains(evaluation: Evaluation) -> set[str]:
    by_domain = evaluation.result.get("by_domain")
    named = set(by_domain) if isinstance(by_domain, dict) else set()
    return named | {str(sample.get("domain", "")) for sample in evaluation.samples}


def _row(label: str, domain: str | None, before: Evaluation | None, after: Evaluation | None) -> Row:
    gain = None
    if before and after:
        first, second = _rewards(before, domain), _rewards(after, domain)
        if first.keys() & second.keys():
            gain = paired_difference(first, second)
    return Row(label, _estimate(before, domain), _estimate(after, domain), gain)


def _rewards(evaluation: Evaluation, domain: str | None) -> dict[str, list[float]]:
    return {key: group for key, group in evaluation.rewards().items() if domain is None or key.startswith(f"{domain}/")}


def _estimate(evaluation: Evaluation | None, domain: str | None) -> Estimate | None:
    """From the samples; without samples.jsonl from result.json, with Wilson over problems (never too narrow)."""
    if evaluation is None:
        return None
    rewards = _rewards(evaluation, domain)
    if rewards:
        return pass_rate(rewards)
    by_domain = evaluation.result.get("by_domain")
    source = evaluation.result if domain is None else (by_domain or {}).get(domain, {})
    problems, rate = number(source, "problems"), number(source, "pass_at_1")
    if not (problems >= 1 and 0 <= rate <= 1):
        return None
    samples = int(problems * max(1.0, number(evaluation.result, "samples_per_problem")))
    interval = wilson_interval(rate * int(problems), int(problems))
    return Estimate(rate, interval, int(problems), samples, "Wilson over problems, no samples.jsonl")


def different_settings(before: Evaluation, after: Evaluation) -> list[str]:
    """Settings in which the two evaluations differ, as `temperature 0.6 and 1.0`: then a gain is not like for like."""
    pairs = [(key, before.result.get(key), after.result.get(key)) for key in SETTINGS]
    return [f"{key.replace('_', ' ')} {first} and {second}" for key, first, second in pairs if first != second]


def pair_samples(before: Evaluation, after: Evaluation) -> list[Pair]:
    """The first sample of every shared problem, in the order of `before`; right means a reward of at least 0.5."""
    first, second = _first_samples(before), _first_samples(after)
    pairs = []
    for key in first:
        if key in second:
            right = (first[key]["reward"] >= 0.5, second[key]["reward"] >= 0.5)
            pairs.append(Pair(_CHANGE[right], first[key], second[key]))
    return pairs


def _first_samples(evaluation: Evaluation) -> dict[str, Record]:
    first: dict[str, Record] = {}
    for sample in evaluation.graded:
        first.setdefault(problem_key(sample), sample)
    return first
