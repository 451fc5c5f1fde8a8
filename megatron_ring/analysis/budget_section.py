"""The page's part on token budgets: score against tokens spent, by rule, and the rules at equal tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ring.analysis import page

COLUMNS = 2


def budget_section(parts: Sequence[Mapping[str, Any]]) -> page.Html:
    """The section of the benchmarks that had a budget; nothing without any."""
    budgeted = [part for part in parts if part.get("budget")]
    if not budgeted:
        return page.Html("")
    head = ("benchmark", "rule", "ended by", "budget", "spent", "majority", "± SE", "responses a problem", "most", "decided",
            "no response")  # fmt: skip
    rows = []
    for part in budgeted:
        budget = part["budget"]
        last = budget["final_tokens"]
        allowed = f"{budget['tokens']:,}" + (f" to {last:,}" if last is not None else "")
        for rule, found in budget["rules"].items():
            error = "" if found["standard_error"] is None else f"{100 * found['standard_error']:.1f}"
            samples = found["samples"]
            rows.append(
                (part["title"], rule, found["ended"], allowed, f"{found['spent']:,}", f"{100 * found['score']:.1f}", error,
                 f"{samples['mean']:.1f}", samples["most"], found["decided"], found["unanswered"])
            )  # fmt: skip
    told = (
        "Majority: the expected score of the most frequent answer, out of 100, over all problems; one without a counted "
        "response scores 0. Tokens are those of responses, thinking included. Decided: the majority is certain enough for "
        "the adaptive rule to leave the problem. ± SE is over problems. Other tables count the uniform rule's responses "
        "where there are both."
    )
    picture = page.figure(_figure(budgeted), "Score of the majority against response tokens spent; bars are 95 % intervals.")
    return page.section("Token budget", page.table(head, rows, text_columns=3), page.note(told), picture, _equal(budgeted))


def _equal(parts: Sequence[Mapping[str, Any]]) -> page.Html:
    """The two rules where both have spent the same."""
    rows = []
    for part in parts:
        equal = part["budget"].get("at_equal_tokens")
        if equal is not None:
            interval = f"{100 * equal['low']:.1f} to {100 * equal['high']:.1f}"
            numbers = [f"{100 * equal[name]:.1f}" for name in ("uniform", "adaptive", "difference")]
            rows.append((part["title"], f"{equal['tokens']:,}", *numbers, interval))
    head = ("benchmark", "tokens of each", "uniform", "adaptive", "difference", "95 % interval")
    return page.table(head, rows) if rows else page.Html("")


def _figure(parts: Sequence[Mapping[str, Any]]) -> bytes:
    """A panel for each benchmark, as PNG."""
    import matplotlib

    from megatron_ring.analysis.figures import BLUE, ORANGE, STYLE, axes_grid, png

    with matplotlib.rc_context(STYLE):
        columns = min(COLUMNS, len(parts))
        lines = -(-len(parts) // columns)
        figure, panels = axes_grid(lines, columns, 3.0 * lines)
        for panel in panels[len(parts) :]:
            panel.set_visible(False)
        for panel, part in zip(panels, parts, strict=False):
            for rule, found in part["budget"]["rules"].items():
                tokens, scores = zip(*found["curve"], strict=True)
                shown = [100 * score for score in scores]
                colour = BLUE if rule == "uniform" else ORANGE
                panel.step(tokens, shown, where="post", color=colour, label=rule)
                error = 0.0 if found["standard_error"] is None else 196 * found["standard_error"]
                panel.errorbar(tokens[-1:], shown[-1:], [error], color=colour, capsize=3, marker="o", markersize=3.5)
            panel.set_title(part["title"])
            panel.set_xlabel("response tokens")
            panel.set_ylabel("majority right, %")
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
            panel.legend(loc="lower right")
        return png(figure)
