"""Rules that choose a start for RL, judged by a finished study: their regret, and what a study teaches of a rule's constant.

The regret of a rule for a seed is how much worse the start that it chose ended than the best start of that seed, in final
pass@1. The best start is known in hindsight only.

What is learnt is the constant (a band of entropies, or a token efficiency) with the smallest mean regret over the seeds.
Learnt and judged on the same seeds a rule looks better than it is. So each seed is also judged by what the others teach.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_ring.analysis.checkpoint_choice import Choice, choose_by_ratio, choose_checkpoint
from megatron_ring.analysis.read_run import Epoch, is_number
from megatron_ring.analysis.spread import MAX_SEEDS, Difference, paired_seeds
from megatron_ring.errors import UserError

EQUAL = 1e-12  # mean regrets that differ by less are the same: sums of rates round
Constant = tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """A start of a study: its SFT checkpoint as rules see it, the score (final pass@1) of RL from it, RL's tokens."""

    start: Epoch
    score: float
    rl_tokens: float

    @property
    def ratio(self) -> float:
        return self.rl_tokens / self.start.tokens


Study = Mapping[int, Sequence[Outcome]]  # by seed


@dataclass(frozen=True)
class Learnt:
    """What a study teaches of a rule.

    Attributes:
        value: the band (low, high), or the token efficiency alone.
        ranges: for each number of `value` the smallest and largest among the constants that are as good.
        regret: mean over the seeds that it was learnt from.
        without: for each seed left out, what the others teach, and its regret on that seed. Empty for one seed.
    """

    value: Constant
    ranges: tuple[tuple[float, float], ...]
    regret: float
    without: tuple[tuple[int, Constant, float], ...]

    @property
    def held_out(self) -> Difference | None:
        """Mean regret on seeds that were left out, with its interval."""
        regrets = [regret for _, _, regret in self.without]
        return paired_seeds([0.0] * len(regrets), regrets) if regrets else None


@dataclass(frozen=True)
class _Kind:
    """A family of rules: the constants to try on a study, the choice by one, and which of equals is preferred."""

    candidates: Callable[[Study], list[Constant]]
    choose: Callable[[Sequence[Outcome], Constant], Choice]
    prefer: Callable[[Study, list[Constant]], Constant]


def regret(outcomes: Sequence[Outcome], choice: Choice) -> float:
    """Of a choice among the starts of one seed: the best final score less that of the chosen start."""
    score = {outcome.start.checkpoint: outcome.score for outcome in outcomes}
    return max(score.values()) - score[choice.checkpoint]


def learn_band(study: Study) -> Learnt:
    """The band of validation entropy (nats per token) for `choose_checkpoint`.

    Tried are all bands whose ends are entropies of the study's starts. Of equally good ones those are preferred that have a
    start of the most seeds inside, then those whose ends are entropies of chosen starts, then the widest.
    """
    return _learn(_BAND, study)


def learn_ratio(study: Study) -> Learnt:
    """The token efficiency for `choose_by_ratio`. Tried are those of the study's starts; of equally good ones the largest is
    taken, which has the least SFT."""
    return _learn(_RATIO, study)


def choose_by_band(outcomes: Sequence[Outcome], band: Constant) -> Choice:
    return choose_checkpoint([outcome.start for outcome in outcomes], (band[0], band[1]))


def choose_by_efficiency(outcomes: Sequence[Outcome], ratio: Constant) -> Choice:
    """RL trains as many tokens from each start of a study."""
    return choose_by_ratio([outcome.start for outcome in outcomes], outcomes[0].rl_tokens, ratio[0])


def _learn(kind: _Kind, study: Study) -> Learnt:
    value, equals, found = _best(kind, study)
    without = []
    for seed in study if len(study) > 1 else ():
        others = {other: outcomes for other, outcomes in study.items() if other != seed}
        taught, _, _ = _best(kind, others)
        without.append((seed, taught, regret(study[seed], kind.choose(study[seed], taught))))
    ranges = tuple((min(numbers), max(numbers)) for numbers in zip(*equals, strict=True))
    return Learnt(value, ranges, found, tuple(without))


def _best(kind: _Kind, study: Study) -> tuple[Constant, list[Constant], float]:
    """The preferred constant, all that are as good, and their mean regret."""
    tried = kind.candidates(study)
    found = {c: fmean(regret(outcomes, kind.choose(outcomes, c)) for outcomes in study.values()) for c in tried}
    least = min(found.values())
    equals = [constant for constant in tried if found[constant] <= least + EQUAL]
    return kind.prefer(study, equals), equals, least


def _bands(study: Study) -> list[Constant]:
    entropies = sorted({outcome.start.entropy for outcomes in study.values() for outcome in outcomes})
    return [(low, high) for index, low in enumerate(entropies) for high in entropies[index:]]


def _preferred_band(study: Study, bands: list[Constant]) -> Constant:
    def chosen_inside(band: Constant) -> list[float]:
        entropies = [choose_by_band(outcomes, band).entropy for outcomes in study.values()]
        return [entropy for entropy in entropies if band[0] <= entropy <= band[1]]

    inside = {band: chosen_inside(band) for band in bands}
    return max(bands, key=lambda band: (len(inside[band]), set(band) <= set(inside[band]), band[1] - band[0], -band[0]))


_BAND = _Kind(_bands, choose_by_band, _preferred_band)
_RATIO = _Kind(
    lambda study: sorted({(outcome.ratio,) for outcomes in study.values() for outcome in outcomes}),
    choose_by_efficiency,
    lambda _, ratios: max(ratios),
)


def say(learnt: Learnt, study: Study, unit: str) -> str:
    """What was learnt and how sure that is, in a few sentences. `unit`: what follows a number, such as " nats"."""
    starts = sum(len(outcomes) for outcomes in study.values())
    ends = [_range(low, high) for low, high in learnt.ranges]
    free = f"its lower end may be {ends[0]}, its upper one {ends[1]}" if len(ends) == 2 else f"it may be {ends[0]}"
    text = (
        f"Learnt from {len(study)} seed(s) and {starts} starts: {shown(learnt.value)}{unit}, with a mean regret of "
        f"{100 * learnt.regret:.1f} points of final pass@1 on these seeds; {free} with the same regret."
    )
    found = learnt.held_out
    if found is None:
        return f"{text} One seed says nothing of how far that holds for another."
    taught = ", ".join(shown(value) for _, value, _ in learnt.without)
    assert found.interval is not None  # two seeds at least
    interval = f"95 % interval {100 * found.interval.low:.1f} to {100 * found.interval.high:.1f}"
    return (
        f"{text} Without one seed it is {taught}. On the seed left out the mean regret is {100 * found.value:.1f} points "
        f"({interval})."
    )


def shown(value: Constant) -> str:
    """A constant with three digits: `0.154–0.182`."""
    return "–".join(f"{number:.3g}" for number in value)


def _range(low: float, high: float) -> str:
    return shown((low,)) if low == high else f"{low:.3g} to {high:.3g}"


def read_study(path: Path) -> Study:
    """The starts of a finished study of epochs, from the JSON that its page is written with.

    Raises:
        UserError: it is not there, or holds no starts.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"--study {path}: cannot be read ({error}); give the JSON that tools/study.py epochs wrote"
        ) from None
    starts = value.get("starts") if isinstance(value, dict) else None
    if not isinstance(starts, list) or not starts:
        raise UserError(f"--study {path}: holds no starts; give the JSON that tools/study.py epochs wrote")
    study: dict[int, list[Outcome]] = {}
    for place, start in enumerate(starts, start=1):
        numbers: dict[str, Any] = {name: start.get(name) if isinstance(start, dict) else None for name in _NEEDED}
        if not all(is_number(x) and math.isfinite(x) for x in numbers.values()):
            bad = next(name for name, x in numbers.items() if not is_number(x) or not math.isfinite(x))
            raise UserError(f"--study {path}: start {place}: {bad} is no finite number; write it with tools/study.py epochs")
        if not (numbers["sft_tokens"] > 0 and numbers["rl_tokens"] > 0 and numbers["validation_entropy"] >= 0):
            raise UserError(f"--study {path}: start {place}: tokens of 0, or an entropy below 0")
        epochs = numbers["epochs"]
        epoch = Epoch(f"{epochs:g}", epochs, int(epochs), numbers["sft_tokens"], numbers["validation_entropy"],
                      numbers["validation_loss"])  # fmt: skip
        study.setdefault(int(numbers["seed"]), []).append(Outcome(epoch, numbers["last"], numbers["rl_tokens"]))
    if len(study) > MAX_SEEDS:
        raise UserError(f"--study {path}: {len(study)} seeds, at most {MAX_SEEDS} are compared")
    for seed, outcomes in study.items():
        if len({outcome.start.checkpoint for outcome in outcomes}) < len(outcomes):
            raise UserError(f"--study {path}: seed {seed} has two starts of the same epochs")
    return study


_NEEDED = ("seed", "epochs", "sft_tokens", "validation_loss", "validation_entropy", "last", "rl_tokens")
