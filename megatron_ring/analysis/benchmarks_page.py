"""The page of an evaluation of benchmarks: scores with intervals beside what the papers publish, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ring.analysis import page
from megatron_ring.analysis.budget_section import budget_section

SOURCES = {
    "ring-lite": "Ring-lite report, arXiv 2506.14731, section 4",
    "ring-lite-2507": "Ring-lite-2507 post of its authors",
}


def benchmarks_page(result: Mapping[str, Any]) -> str:
    """The page, one file without scripts. `result` is result.json."""
    parts: Sequence[Mapping[str, Any]] = result["benchmarks"]
    sampling = result["sampling"]
    head = page.element("h1", "Benchmarks")
    said = (
        f"{result['checkpoint']}. Temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, up to "
        f"{sampling['max_new_tokens']:,} new tokens, zero-shot. Only the text after the thinking is scored."
    )
    missing = result.get("missing") or []
    notes = [page.note(f"Not measured, no file was given: {', '.join(missing)}.")] if missing else []
    body = [head, page.element("p", said), *notes, _scores(parts), _repeated(parts), budget_section(parts), _judged(result),
            _categories(parts),
            _files(parts)]  # fmt: skip
    return page.document("Benchmarks", page.join(body))


def _scores(parts: Sequence[Mapping[str, Any]]) -> page.Html:
    head = ("benchmark", "metric", "score", "± SE", "95 % interval", "Ring-lite", "Ring-lite-2507", "problems", "n",
            "truncated", "unparsed", "no verdict", "tokens a response")  # fmt: skip
    rows = []
    for part in parts:
        low = high = None
        if part["score"] is not None and part["standard_error"] is not None:
            low, high = part["score"] - 1.96 * part["standard_error"], part["score"] + 1.96 * part["standard_error"]
        interval = "" if low is None or high is None else f"{100 * max(0.0, low):.1f} to {100 * min(1.0, high):.1f}"
        published = [_plain(part["published"].get(name)) for name in SOURCES]
        rows.append(
            (part["title"], part["metric"], _percent(part["score"]), _percent(part["standard_error"]), interval, *published,
             part["problems"], part.get("samples_per_problem", ""), part["truncated"], part["unparsed"], part["no_verdict"],
             "" if part["tokens_mean"] is None else f"{part['tokens_mean']:,.0f}")
        )  # fmt: skip
    sources = "; ".join(f"{name}: {source}" for name, source in SOURCES.items())
    told = (
        f"Out of 100. Published scores: {sources}. Codeforces is published as a percentile, which is not our "
        "metric. AlignBench's is the mean score of 1 to 10, times ten. Judged scores depend on the judge."
    )
    return page.section("Scores", page.table(head, rows, text_columns=2), page.note(told), _picture(parts))


def _picture(parts: Sequence[Mapping[str, Any]]) -> page.Html:
    from megatron_ring.analysis.benchmarks_figure import benchmarks_figure
    from megatron_ring.analysis.figures import png

    figure = benchmarks_figure(parts)
    caption = (
        "Scores, bars are 95 % intervals; marks are published ones. Codeforces has none: its percentile is another unit."
    )
    return page.Html("") if figure is None else page.figure(png(figure), caption)


def _repeated(parts: Sequence[Mapping[str, Any]]) -> page.Html:
    rows = []
    for part in parts:
        if part.get("samples_per_problem", 1) > 1 and "pass_at_k" in part:
            passes = ", ".join(f"pass@{k} {_percent(value)}" for k, value in part["pass_at_k"].items())
            g_pass = part["g_pass"]
            taus = ", ".join(f"τ {tau}: {_percent(g_pass[tau])}" for tau in ("0.25", "0.5", "0.75", "1.0"))
            rows.append((part["title"], passes, taus, g_pass["k"], _percent(g_pass["mean"]), _percent(part["cons_at_n"])))
    head = ("benchmark", "pass@k", "G-Pass@k", "k", "mG-Pass@k", "cons@n")
    return page.section("Several samples", page.table(head, rows, text_columns=3)) if rows else page.Html("")


def _judged(result: Mapping[str, Any]) -> page.Html:
    """How the judge worked; nothing where there was none."""
    judge, rows = result.get("judge"), []
    for part in result["benchmarks"]:
        found = part.get("judge")
        if found:
            versions = ", ".join(f"{name} {prompt['version']}" for name, prompt in found["prompts"].items())
            verdicts = ", ".join(f"{value}: {count:,}" for value, count in found["verdicts"].items() if count)
            more = "weighted_win_rate" in found
            even = found.get("style_controlled")
            interval = "" if even is None else f"{100 * even['low']:.1f} to {100 * even['high']:.1f}"
            rows.append(
                (part["title"], found["protocol"], versions, verdicts, found["judged"], found["judge_failed"],
                 found["asked_again"], _plain(found["length_correlation"]), _percent(found.get("orders_agree")),
                 _percent(found["weighted_win_rate"] if more else None),
                 _percent(even["win_rate"] if even else None), interval, _percent(found.get("f1")))
            )  # fmt: skip
    if not judge or not rows:
        return page.Html("")
    head = ("benchmark", "protocol", "prompt, version", "verdicts", "judged", "failed", "asked again", "length ρ",
            "orders agree", "win rate, clear wins x3", "at equal style", "95 % interval", "F1")  # fmt: skip
    who = judge.get("model") or judge.get("checkpoint")
    told = (
        f"Judged by {who}. What failed twice is excluded. Length ρ is the rank correlation of score and length. Pairs are "
        "judged in both orders. At equal style: the win rate that a Bradley–Terry model gives for answers of equal length "
        "and markdown. F1: of right answers among all and among those given."
    )
    return page.section("Judge", page.table(head, rows, text_columns=4), page.note(told), _grades(result["benchmarks"]))


def _grades(parts: Sequence[Mapping[str, Any]]) -> page.Html:
    """What judges graded beside the whole, and AlignBench's own total."""
    rows = []
    for part in parts:
        judge = part.get("judge") or {}
        for name in ("total", "language", "reasoning"):
            if name in judge:
                rows.append((part["title"], name, f"{10 * judge[name]:.2f}"))
        rows += [(part["title"], name, f"{grade:.2f}") for name, grade in judge.get("dimensions", {}).items()]
    head = ("benchmark", "of 10; total: categories weigh the same, then the two groups", "grade")
    return page.table(head, rows, text_columns=2) if rows else page.Html("")


def _categories(parts: Sequence[Mapping[str, Any]]) -> page.Html:
    found = []
    for part in parts:
        for name, value in (part.get("variants") or {}).items():
            found.append((part["title"], name, _percent(value), "", ""))
        for name, value in (part.get("by_category") or {}).items():
            found.append(
                (part["title"], name, _percent(value["score"]), _percent(value["standard_error"]), value["problems"])
            )  # fmt: skip
    head = ("benchmark", "part", "score", "± SE", "problems")
    return page.section("Parts", page.table(head, found, text_columns=2)) if found else page.Html("")


def _files(parts: Sequence[Mapping[str, Any]]) -> page.Html:
    rows = [
        (part["title"], part["file"], part["sha256"], part.get("window") or "", "; ".join(part["notes"]), part["rows"])
        for part in parts
    ]
    head = ("benchmark", "file", "SHA-256", "window", "notes", "rows")
    return page.section("Files", page.table(head, rows, text_columns=5))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
