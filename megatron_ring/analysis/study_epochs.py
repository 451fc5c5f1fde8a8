"""The page of the study of SFT epochs, from the results of its starts: tables, regret of each rule, figures, numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from megatron_ring.analysis import start_rules
from megatron_ring.analysis.checkpoint_choice import PAPER_BAND, Choice, choose_by_loss, choose_by_score
from megatron_ring.analysis.spread import Difference, paired_seeds
from megatron_ring.analysis.start_rules import Learnt, Outcome, Study
from megatron_ring.analysis.study import Row, as_json, best_by_others, chosen
from megatron_ring.analysis.study_claims import claims_json, claims_table
from megatron_ring.analysis.study_cost import JobTime, cost_table
from megatron_ring.analysis.study_epochs_claims import claims_of, part_text
from megatron_ring.analysis.study_epochs_figures import entropy_figure, front_figure, ratio_figure, rl_figure
from megatron_ring.analysis.study_page import figure_link
from megatron_ring.analysis.study_starts import Start, by_seed, mean_points, pareto, read_starts, whole_part
from megatron_ring.analysis.study_tables import by_seed as table_by_seed
from megatron_ring.analysis.study_tables import difference, table
from megatron_ring.errors import UserError

REPORTS_BAND = f"band {start_rules.shown(PAPER_BAND)} (the report's)"
DEMO_BAND = (0.15, 0.30)  # of examples/tiny
Page = tuple[dict[str, str], dict[str, Figure], dict[str, Any]]
Seeds = dict[int, list[Start]]
Choose = Callable[[int], Choice | None]  # by seed; None where it cannot be made

_MEASURES: dict[str, Callable[[Start], float]] = {
    "SFT tokens": lambda start: start.start.tokens,
    "validation loss": lambda start: start.start.loss,
    "validation entropy (nats)": lambda start: start.start.entropy,
    "pass@1 before RL": lambda start: start.before,
    "pass@1, best of RL": lambda start: start.best,
    "pass@1, last of RL": lambda start: start.last,
    "gain (last − before)": lambda start: start.last - start.before,
    "RL tokens": lambda start: start.rl_tokens,
    "RL tokens / SFT tokens": lambda start: start.ratio,
}
_COMPARED = ("pass@1, last of RL", "pass@1, best of RL", "gain (last − before)")


def page(
    folders: Sequence[Path],
    seeds: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
    partial: bool = False,
) -> Page:
    """Tables, figures and numbers of the starts in these folders, or of those of some seeds and numbers of epochs.

    Args:
        partial: where starts are missing, take the largest part without holes.

    Raises:
        UserError: a start is missing, or cannot be used.
    """
    starts, groups, part = _starts(folders, seeds, counts, partial)
    rows = measures(groups)
    best = best_start(rows["pass@1, last of RL"])
    settings = list(rows["SFT tokens"].values)
    pairs = [(best, setting) for setting in settings if setting != best]
    found = regrets(groups)
    learnt = {name: learn(study_of(groups)) for name, learn in _LEARNT.items()}
    named = {"blind": "any start, on average", "band": REPORTS_BAND, "loss": "lowest validation loss"}
    claims = claims_of(groups, rows, {name: found[rule].last for name, rule in named.items()})
    tables = {
        "part": part,
        "claims": claims_table(claims),
        "cost": cost_table({kind: _job_times(starts, kind) for kind in ("sft", "before", "rl")}),
        "starts": table(list(rows.values()), settings, (), "epochs of SFT"),
        "differences": table([rows[name] for name in _COMPARED], settings, pairs, "epochs of SFT"),
        "collapses": table_by_seed(_collapses(groups), list(groups), "epochs of SFT"),
        "regret": regret_table(found, list(groups)),
        "learnt": _learnt_text(learnt, study_of(groups)),
        "sweet spot": _sweet_text(rows),
    }
    spot = sweet_spot(rows)
    figures = {
        "study-epochs-entropy": entropy_figure(groups),
        "study-epochs-rl": rl_figure(groups),
        "study-epochs-tokens": front_figure(groups),
        "study-epochs-ratio": ratio_figure(groups, spot),
    }
    tables |= {f"figure {name.rsplit('-', 1)[1]}": f"{figure_link(name)}\n" for name in figures}
    numbers = {
        "seeds": list(groups),
        "epochs": [int(setting) for setting in settings],
        "one_run": starts[0].one_run,
        "problems": starts[0].problems,
        "starts": [start.summary() for start in starts],
        "measures": as_json(list(rows.values()), pairs),
        "best start": int(best),
        "regret": {name: each.as_json() for name, each in found.items()},
        "learnt": {name: dataclasses.asdict(value) for name, value in learnt.items()},
        "sweet spot": None if spot is None else {"epochs": int(spot[0]), "ratio": spot[1]},
        "claims": claims_json(claims),
        "front": [list(point) for point in front_points(groups)],
        "settings": starts[0].settings,
    }
    return tables, figures, numbers


def _job_times(starts: Sequence[Start], kind: str) -> list[JobTime | None]:
    """Of each job of a kind once: starts on the way of one SFT run share it."""
    shared = kind == "sft" and starts[0].one_run
    found = {(start.seed, 0 if shared else start.epochs): start.job_time(kind) for start in starts}
    return list(found.values())


def _starts(
    folders: Sequence[Path], seeds: Sequence[int] | None, counts: Sequence[int] | None, partial: bool
) -> tuple[list[Start], Seeds, str]:
    """The starts of a page, the same by seed, and which they are in words."""
    found_starts = [start for start in read_starts(folders) if seeds is None or start.seed in seeds]
    found_starts = [start for start in found_starts if counts is None or start.epochs in counts]
    starts = whole_part(found_starts) if partial and found_starts else found_starts
    groups = by_seed(starts)
    missing = [str(seed) for seed in seeds or () if seed not in groups]
    if missing or not groups:
        raise UserError(f"{folders[0]}: no result of seed {', '.join(missing) or '(any)'}; run the study first")
    return starts, groups, part_text(starts, found_starts)


def measures(groups: Seeds) -> dict[str, Row]:
    """A row for each measure; the settings are the numbers of epochs, ascending."""
    counts = [start.epochs for start in next(iter(groups.values()))]
    of = {count: [next(s for s in starts if s.epochs == count) for starts in groups.values()] for count in counts}
    return {
        name: Row(name, {str(count): tuple(measure(start) for start in starts) for count, starts in of.items()})
        for name, measure in _MEASURES.items()
    }


def best_start(final: Row) -> str:
    """The number of epochs with the best mean over seeds (the fewest of equals)."""
    return max(final.values, key=lambda setting: fmean(final.values[setting]))


def study_of(groups: Seeds) -> Study:
    """What rules learn from: the final pass@1 of each start."""
    return {seed: [Outcome(start.start, start.last, start.rl_tokens) for start in starts] for seed, starts in groups.items()}


_LEARNT: dict[str, Callable[[Study], Learnt]] = {
    "band": start_rules.learn_band,
    "token efficiency": start_rules.learn_ratio,
}


@dataclasses.dataclass(frozen=True)
class Regret:
    """Of one rule, by seed: epochs of the start that it chose, and its regret in final and in best pass@1. None where it
    chose nothing."""

    chosen: list[int | None]
    last: list[float | None]
    best: list[float | None]

    @property
    def mean(self) -> Difference | None:
        """Mean regret in final pass@1 and its interval; None where a seed has none."""
        values = [value for value in self.last if value is not None]
        return paired_seeds([0.0] * len(values), values) if len(values) == len(self.last) else None

    def as_json(self) -> dict[str, Any]:
        mean = self.mean
        ends = None if mean is None or mean.interval is None else [mean.interval.low, mean.interval.high]
        value = None if mean is None else mean.value
        return {"chosen": self.chosen, "last": self.last, "best": self.best, "mean": value, "interval_95": ends}


def regrets(groups: Seeds) -> dict[str, Regret]:
    """The regret of each rule, seed by seed, and that of a start drawn at random (its mean over the starts)."""
    study = study_of(groups)
    found = {name: _regret(groups, choose) for name, choose in _rules(groups, study).items()}
    last = [fmean(max(s.last for s in starts) - start.last for start in starts) for starts in groups.values()]
    best = [fmean(max(s.best for s in starts) - start.best for start in starts) for starts in groups.values()]
    return {**found, "any start, on average": Regret([None] * len(groups), [*last], [*best])}


def _rules(groups: Seeds, study: Study) -> dict[str, Choose]:
    left_out = {name: {seed: value for seed, value, _ in learn(study).without} for name, learn in _LEARNT.items()}

    def fixed(band: tuple[float, float]) -> Choose:
        return lambda seed: start_rules.choose_by_band(study[seed], band)

    def by_others(name: str, choose: Callable[[Sequence[Outcome], start_rules.Constant], Choice]) -> Choose:
        return lambda seed: choose(study[seed], left_out[name][seed]) if seed in left_out[name] else None

    def last(seed: int) -> Choice:
        start = study[seed][-1].start
        return Choice(start.checkpoint, start.epoch, start.entropy, "")

    def by_score(seed: int) -> Choice:
        scores = {start.start.checkpoint: start.before for start in groups[seed]}
        return choose_by_score([outcome.start for outcome in study[seed]], scores)

    return {
        REPORTS_BAND: fixed(PAPER_BAND),
        f"band {start_rules.shown(DEMO_BAND)} (the demo's)": fixed(DEMO_BAND),
        "band, learnt from the other seeds": by_others("band", start_rules.choose_by_band),
        "token efficiency, learnt from the other seeds": by_others("token efficiency", start_rules.choose_by_efficiency),
        "lowest validation loss": lambda seed: choose_by_loss([outcome.start for outcome in study[seed]]),
        "best pass@1 before RL": by_score,
        "last (most epochs)": last,
    }


def _regret(groups: Seeds, choose: Choose) -> Regret:
    chosen: list[int | None] = []
    last: list[float | None] = []
    best: list[float | None] = []
    for seed, starts in groups.items():
        choice = choose(seed)
        start = None if choice is None else next(s for s in starts if s.start.checkpoint == choice.checkpoint)
        chosen.append(None if start is None else start.epochs)
        last.append(None if start is None else max(s.last for s in starts) - start.last)
        best.append(None if start is None else max(s.best for s in starts) - start.best)
    return Regret(chosen, last, best)


def regret_table(found: Mapping[str, Regret], seeds: Sequence[int]) -> str:
    """A line for each rule: for each seed the regret (points of final pass@1) and the epochs chosen; the mean."""
    lines = [f"| rule | {' | '.join(f'seed {seed}' for seed in seeds)} | mean (95 % interval) |",
             f"| {' | '.join(['---'] * (len(seeds) + 2))} |"]  # fmt: skip
    for name, each in found.items():
        cells = []
        for epochs, value in zip(each.chosen, each.last, strict=True):
            cells.append("" if value is None else f"{100 * value:.1f}" + (f" ({epochs})" if epochs else ""))
        lines.append(f"| {name} | {' | '.join(cells)} | {_mean(each.mean)} |")
    return "\n".join(lines) + "\n"


def _mean(found: Difference | None) -> str:
    if found is None:
        return ""
    if found.interval is None:
        return f"{100 * found.value:.1f}"
    return f"{100 * found.value:.1f} ({100 * found.interval.low:.1f} to {100 * found.interval.high:.1f})"


def sweet_spot(rows: Mapping[str, Row]) -> tuple[str, float] | None:
    """The number of epochs with the best mean, and its mean ratio of RL to SFT tokens, where choosing so is better than both
    ends by more than the seeds' spread; None where the best start is at an end, or is not told from one."""
    final, ratio = rows["pass@1, last of RL"], rows["RL tokens / SFT tokens"]
    settings, best = list(final.values), best_start(final)
    if best in (settings[0], settings[-1]):
        return None
    ends = [_over(final, end) for end in (settings[0], settings[-1])]
    return (best, fmean(ratio.values[best])) if all(end is not None and end.exceeds_spread for end in ends) else None


def _over(final: Row, end: str) -> Difference | None:
    """By how much the number of epochs that the other seeds choose is better than an end; None for one seed."""
    others = best_by_others(final.values)
    return None if others is None else paired_seeds(final.values[end], chosen(final.values, others))


def _sweet_text(rows: Mapping[str, Row]) -> str:
    final, ratio = rows["pass@1, last of RL"], rows["RL tokens / SFT tokens"]
    settings, best = list(final.values), best_start(final)
    found = f"The best mean is that of {best} epoch(s), a ratio of {fmean(ratio.values[best]):.3g}."
    if best in (settings[0], settings[-1]):
        return f"No sweet spot: the best start is at an end of what was tried. {found}\n"
    over = {end: _over(final, end) for end in (settings[0], settings[-1])}
    against = ", ".join(f"{difference(each)} against {end}" for end, each in over.items() if each is not None)
    spot = "A sweet spot" if sweet_spot(rows) else "No sweet spot beyond the seeds' spread"
    if not against:
        return f"One seed does not tell whether there is a sweet spot. {found}\n"
    return f"{spot}: {found} Chosen by the other seeds, final pass@1 differs by {against} epochs.\n"


def _collapses(groups: Seeds) -> dict[str, list[str]]:
    counts = [start.epochs for start in next(iter(groups.values()))]
    found = {(start.epochs, seed): start.collapse for seed, starts in groups.items() for start in starts}
    return {str(count): [str(found[count, seed] or "none") for seed in groups] for count in counts}


def _learnt_text(learnt: Mapping[str, Learnt], study: Study) -> str:
    units = {"band": " nats"}
    return "\n".join(f"- **{n}.** {start_rules.say(value, study, units.get(n, ''))}" for n, value in learnt.items()) + "\n"


def front_points(groups: Seeds) -> list[tuple[int, float, float]]:
    """The Pareto front of mean points (epochs, SFT + RL tokens, pass@1): no other has a better score for as few tokens."""
    return pareto([(count, tokens, rate) for count, points in mean_points(groups).items() for tokens, rate in points])
