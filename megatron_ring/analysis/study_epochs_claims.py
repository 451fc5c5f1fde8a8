"""What the study of SFT epochs says of the report's claims, and which starts it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_ring.analysis.spread import Difference, paired_seeds
from megatron_ring.analysis.study import Row, best_by_others, chosen
from megatron_ring.analysis.study_claims import Claim
from megatron_ring.analysis.study_starts import Start

Seeds = dict[int, list[Start]]
Regrets = Mapping[str, Sequence[float | None]]


def part_text(used: Sequence[Start], found: Sequence[Start]) -> str:
    """Which starts a page is of, and which it leaves out."""
    counts, seeds = (sorted({getattr(start, name) for start in used}) for name in ("epochs", "seed"))
    text = f"{len(used)} starts: epochs {', '.join(map(str, counts))}; seeds {', '.join(map(str, seeds))}."
    left = [f"seed {start.seed} epochs {start.epochs}" for start in found if start not in used]
    more = f" Left out, as other seeds lack it: {'; '.join(left)}." if left else ""
    steps, planned = len(used[0].reward), used[0].settings.get("steps")
    cut = f", the first of {planned} that were planned" if planned != steps else ""
    return f"{text}{more} {steps} steps of RL{cut}. {used[0].problems} held-out problems.\n"


def claims_of(groups: Seeds, rows: Mapping[str, Row], regrets: Regrets) -> list[Claim]:
    """The report's claims (Ring-lite, on SFT epochs before RL), and what this study says of them. Where a claim is of the
    best number of epochs, each seed is judged by the number that is best for the other seeds.

    Args:
        regrets: regret in final pass@1 by seed, of a blind choice (`blind`), the report's band (`band`) and the lowest
            validation loss (`loss`).
    """
    final, gain, entropy = rows["pass@1, last of RL"], rows["gain (last − before)"], rows["validation entropy (nats)"]
    settings = list(final.values)
    few, most = settings[0], settings[-1]
    best = best_by_others(final.values)
    ten = None if best is None else paired_seeds([0.10] * len(groups), chosen(gain.values, best))
    claims = [
        Claim("more epochs lower the entropy", f"validation entropy, {few} − {most} epochs (nats)",
              entropy.difference(most, few)),
        Claim("more epochs make RL collapse earlier", f"step of the collapse, {few} − {most} epochs",
              _collapse_difference(groups)),
        Claim("entropy in 0.3–0.5 chooses a good start", "regret of a blind choice − that of the band (pass@1)",
              _paired(regrets["band"], regrets["blind"])),
        Claim("the lowest validation loss does not choose the best start",
              "regret of that rule (pass@1); the best is known in hindsight, so it is a little too large",
              _paired([0.0] * len(groups), regrets["loss"]), bound=True),
        Claim("RL gains 10 points from the best start; an aim of ours", f"gain{_of(best)} − 0.10 (pass@1)", ten),
    ]  # fmt: skip
    between = {setting: final.values[setting] for setting in settings[1:-1]}
    middle = best_by_others(between) if between else None
    for end, name in ((few, "fewest"), (most, "most")) if between else ():
        text = f"a moderate number of epochs is better than the {name}"
        found = None if middle is None else paired_seeds(final.values[end], chosen(final.values, middle))
        claims.insert(-1, Claim(text, f"last pass@1{_of(middle)} − {end} epochs", found))
    return claims


def _of(settings: Sequence[str] | None) -> str:
    """Which numbers of epochs the other seeds have chosen; one seed has no others."""
    if settings is None:
        return ", epochs that other seeds would choose"
    return f", {', '.join(dict.fromkeys(settings))} epochs (chosen by the other seeds)"


def _paired(first: Sequence[float | None], second: Sequence[float | None]) -> Difference | None:
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return paired_seeds([a for a, _ in pairs], [b for _, b in pairs]) if len(pairs) == len(first) else None


def _collapse_difference(groups: Seeds) -> Difference | None:
    """Few epochs − many; a run that never collapsed counts as one step beyond its end. None where no run collapsed."""
    ends = [(starts[0], starts[-1]) for starts in groups.values()]
    if all(start.collapse is None for pair in ends for start in pair):
        return None
    few, most = ([float(start.collapse or len(start.reward) + 1) for start in each] for each in zip(*ends, strict=True))
    return paired_seeds(most, few)
