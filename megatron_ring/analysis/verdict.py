"""The verdict, sentence by sentence, each computed from the numbers and claiming no more than they show."""

from __future__ import annotations

import math
import statistics

from megatron_ring.analysis.comparison import Row, different_settings
from megatron_ring.analysis.material import Material
from megatron_ring.analysis.read_run import Run, number
from megatron_ring.analysis.statistics import Estimate

_WATCHED = ("loss", "entropy", "grad_norm", "reward/mean", "loss/policy", "kl")


def percent(value: float) -> str:
    """A rate as `31.2 %`."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """A difference of rates as `+3.4 points` (`±0.0` never shows as −0.0)."""
    rounded = round(100 * value, 1) + 0.0
    return f"{rounded:+.1f}".replace("-", "−")


def interval(estimate: Estimate) -> str:
    """The interval of a pass rate as `28.1–34.5 %`."""
    return f"{100 * estimate.interval.low:.1f}–{100 * estimate.interval.high:.1f} %"


def gain_interval(estimate: Estimate) -> str:
    """The interval of a difference as `+0.2 to +6.1`."""
    return f"{points(estimate.interval.low)} to {points(estimate.interval.high)}"


def paragraphs(material: Material) -> list[str]:
    """What the numbers show, in a reader's order: did it help, where RL started, was Φ kept, is it sound."""
    found: list[list[str]] = []
    if material.rows:
        found.append(gain_sentences(material))
    if material.selection is not None:
        found.append([f"RL start: {material.selection['reason']}"])
    if material.rl is not None:
        found.append([budget_sentence(material.rl), reward_sentence(material.rl), efficiency_sentence(material)])
    runs = (("SFT", material.sft), ("RL", material.rl))
    found.append([finite_sentence(name, run) for name, run in runs if run is not None])
    return [text for text in (" ".join(filter(None, sentences)) for sentences in found) if text]


def gain_sentences(material: Material) -> list[str]:
    """Pass@1 before and after with the interval of the paired gain, overall and for domains that moved."""
    overall = material.rows[0]
    if overall.before is None or overall.after is None:
        side, estimate = ("after RL", overall.after) if overall.before is None else ("before RL", overall.before)
        if estimate is None:
            return []
        detail = f"95 % interval {interval(estimate)}, {estimate.problems:,} problems"
        return [f"Pass@1 {side} is {percent(estimate.value)} ({detail}); without another evaluation no gain is known."]
    rates = (
        f"Pass@1 was {percent(overall.before.value)} before RL and {percent(overall.after.value)} after it "
        f"({overall.before.problems:,} and {overall.after.problems:,} problems)"
    )
    if overall.gain is None:
        return [f"{rates}; the two share no problem with samples, so no paired gain can be stated."]
    found = [f"{rates}: {_judge(overall.gain)}."]
    moved = [row for row in material.rows[1:] if row.gain and row.gain.interval.low * row.gain.interval.high > 0]
    if len(material.rows) > 1:
        moves = ", ".join(f"{row.domain} {points(row.gain.value)} ({gain_interval(row.gain)})" for row in moved if row.gain)
        found.append(
            f"By domain, the interval leaves out zero for {moves}."
            if moves
            else "No single domain's interval leaves out zero."
        )
    assert material.before is not None and material.after is not None
    differing = different_settings(material.before, material.after)
    if differing:
        found.append(f"The evaluations differ in {'; '.join(differing)}: the gain is not like for like.")
    return found


def _judge(gain: Estimate) -> str:
    detail = f"95 % interval {gain_interval(gain)}, {gain.problems:,} shared problems, {gain.method}"
    stated = f"{points(gain.value)} points ({detail})"
    if gain.interval.low > 0:
        return f"a gain of {stated}"
    if gain.interval.high < 0:
        return f"a loss of {stated}"
    return f"a difference of {stated}, which includes zero, so these numbers show neither a gain nor a loss"


def budget_sentence(run: Run) -> str:
    """Whether every recorded step trained exactly its token budget Φ."""
    rows = [row for row in run.metrics if not math.isnan(number(row, "tokens/trained") + number(row, "tokens/budget"))]
    if not rows:
        return "The RL metrics record no token budget, so Φ was not checked."
    scope = (
        f"{len(rows)} of the {len(run.metrics)} recorded RL steps tell their budget; "
        if len(rows) < len(run.metrics)
        else ""
    )
    off = [row for row in rows if row["tokens/trained"] != row["tokens/budget"]]
    budgets = sorted({row["tokens/budget"] for row in rows})
    phi = f"Φ = {budgets[0]:,} tokens" if len(budgets) == 1 else f"their Φ (from {budgets[0]:,} to {budgets[-1]:,} tokens)"
    if not off:
        all_of_them = f"all {len(rows)} of them" if scope else f"All {len(rows)} recorded RL steps"
        return f"{scope}{all_of_them} trained exactly {phi}."
    named = ", ".join(f"step {row['step']} trained {row['tokens/trained']:,} of {row['tokens/budget']:,}" for row in off[:3])
    more = f" and {len(off) - 3} more" if len(off) > 3 else ""
    short = sum(number(row, "tokens/generated") < row["tokens/budget"] for row in off)
    why = f"; in {short} of these fewer than Φ tokens had been generated" if short else ""
    kept = f"{len(rows) - len(off)} of {len(rows)} RL steps trained exactly {phi}"
    return f"{scope}{kept}, {len(off)} did not: {named}{more}{why}."


def reward_sentence(run: Run) -> str:
    """Mean reward over the first and last steps, and the best stretch of the same length when it is another one."""
    steps, rewards = run.series("reward/mean")
    if len(rewards) < 2:
        return ""
    width = max(1, min(5, len(rewards) // 2))
    means = [statistics.fmean(rewards[start : start + width]) for start in range(len(rewards) - width + 1)]
    best = max(range(len(means)), key=lambda start: means[start] if math.isfinite(means[start]) else -math.inf)
    span = f"{width} steps" if width > 1 else "step"
    sentence = f"Mean training reward was {means[0]:.3f} over the first {span} and {means[-1]:.3f} over the last {span}"
    if means[best] > max(means[0], means[-1]):
        where = f"steps {steps[best]:.0f}–{steps[best + width - 1]:.0f}" if width > 1 else f"step {steps[best]:.0f}"
        sentence += f", at best {means[best]:.3f} ({where})"
    return sentence + "."


def efficiency_sentence(material: Material) -> str:
    """Token efficiency: RL trained tokens over the SFT tokens behind the checkpoint that RL starts from."""
    rl, sft = material.rl_tokens(), material.start_tokens()
    if not (rl > 0 and sft > 0):
        return ""
    until = "up to the chosen checkpoint" if material.selection is not None else "in all of SFT"
    return f"RL trained {rl:,.0f} tokens, {rl / sft:.3g} times the {sft:,.0f} trained {until} (token efficiency)."


def finite_sentence(name: str, run: Run) -> str:
    """Names steps with NaN or infinite losses, norms or rewards; empty when there are none."""
    bad = [
        (row["step"], key)
        for row in run.metrics
        for key in _WATCHED
        if isinstance(row.get(key), float) and not math.isfinite(row[key])
    ]
    if not bad:
        return ""
    named = ", ".join(f"{key} at step {step}" for step, key in bad[:3])
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"{name} recorded values that are not finite: {named}{more}."


def headline_gain(rows: list[Row]) -> tuple[str, str]:
    """Value and detail of the gain tile; empty texts when there is no paired gain."""
    gain = rows[0].gain if rows else None
    return (f"{points(gain.value)} points", f"95 % interval {gain_interval(gain)}") if gain else ("", "")
