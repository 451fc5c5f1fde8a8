"""Choose the SFT checkpoint that RL starts from: by validation entropy, or by another rule.

Prints the chosen checkpoint's path alone on stdout, so a launcher can write `CKPT=$(python tools/select_checkpoint.py
--run …)`; the table and the reason go to stderr, and selection.json into the run directory.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megatron_ring.analysis import start_rules
from megatron_ring.analysis.checkpoint_choice import (
    PAPER_BAND,
    Choice,
    choose_by_loss,
    choose_by_ratio,
    choose_by_score,
    choose_checkpoint,
    distance_to_band,
)
from megatron_ring.analysis.comparison import different_settings
from megatron_ring.analysis.read_run import Epoch, Evaluation, epoch_checkpoints, number, read_evaluation, read_run
from megatron_ring.config.cli import parse
from megatron_ring.errors import UserError, run_main

Band = tuple[float, float]


@dataclass(frozen=True)
class Flags:
    """Choose the SFT checkpoint for RL: as a rule the latest one whose validation entropy lies in the band."""

    run: Path
    """Run directory of SFT: metrics.jsonl and checkpoints/."""
    rule: Literal["band", "token-efficiency", "validation", "score"] = "band"
    """band: the latest whose validation entropy lies in the band. token-efficiency: RL tokens over SFT tokens nearest to
    --ratio. validation: the lowest validation loss. score: the best pass@1 before RL, of --evaluations."""
    entropy_low: float | None = None
    """Lower end of the band, nats per token: below it RL explores too little (default: 0.3, the report's)."""
    entropy_high: float | None = None
    """Upper end of the band, nats per token: above it RL learns slowly (default: 0.5, the report's)."""
    study: Path | None = None
    """Learn the band, or the ratio, from this finished study: the JSON that `tools/study.py epochs` wrote."""
    ratio: float | None = None
    """Token efficiency to come near to: tokens that RL trains over tokens that SFT trained."""
    rl_tokens: float | None = None
    """Tokens that the RL run is to train: its steps times Phi of all ranks."""
    evaluations: tuple[Path, ...] = ()
    """Folders that `evaluate` wrote, one for each checkpoint to compare."""
    dry_run: bool = False
    """Choose from what is there already, and write nothing."""

    def __post_init__(self) -> None:
        owners = {"entropy_low": ("band",), "entropy_high": ("band",), "study": ("band", "token-efficiency"),
                  "ratio": ("token-efficiency",), "rl_tokens": ("token-efficiency",), "evaluations": ("score",)}  # fmt: skip
        for name, rules in owners.items():
            if getattr(self, name) not in (None, ()) and self.rule not in rules:
                raise UserError(f"--{name.replace('_', '-')} belongs to --rule {' or '.join(rules)}, --rule is {self.rule}")
        if self.study is not None and (self.entropy_low is not None or self.entropy_high is not None):
            raise UserError("--study: the band is learnt from it, leave --entropy-low and --entropy-high out")
        if self.rule == "token-efficiency":
            if (self.ratio is None) == (self.study is None):
                raise UserError("--rule token-efficiency: give either --ratio or --study")
            if self.rl_tokens is None:
                raise UserError("--rule token-efficiency: give --rl-tokens, the steps of the RL run times its Phi")
        for name in ("ratio", "rl_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} is {value}, not a positive number")
        if self.rule == "score" and not self.evaluations:
            raise UserError("--rule score: give --evaluations, folders that `evaluate` wrote of the run's checkpoints")

    @property
    def band(self) -> Band:
        """The band that was asked for, or the report's."""
        low = PAPER_BAND[0] if self.entropy_low is None else self.entropy_low
        return low, PAPER_BAND[1] if self.entropy_high is None else self.entropy_high


@dataclass(frozen=True)
class Chosen:
    """A choice, and what it rests on: the band of that rule, and more for selection.json."""

    choice: Choice
    band: Band | None
    record: dict[str, Any]


def choose(flags: Flags, epochs: list[Epoch]) -> Chosen:
    """Choose among the epochs whose checkpoints are there."""
    if flags.rule == "validation":
        return Chosen(choose_by_loss(epochs), None, {})
    if flags.rule == "score":
        scores = read_scores(flags.run, flags.evaluations)
        choice = choose_by_score(epochs, scores)
        without = [epoch.checkpoint for epoch in epochs if epoch.checkpoint not in scores]
        more = f" Not evaluated: {', '.join(without)}." if without else ""
        return Chosen(replace(choice, reason=choice.reason + more), None, {"scores": scores})
    if flags.study is None:
        if flags.rule == "band":
            return Chosen(choose_checkpoint(epochs, flags.band), flags.band, {})
        return Chosen(choose_by_ratio(epochs, flags.rl_tokens or 0, flags.ratio or 0), None, {"ratio": flags.ratio})
    study = start_rules.read_study(flags.study)
    by_band = flags.rule == "band"
    learnt = (start_rules.learn_band if by_band else start_rules.learn_ratio)(study)
    if by_band:
        band = (learnt.value[0], learnt.value[1])
        choice = choose_checkpoint(epochs, band)
    else:
        choice = choose_by_ratio(epochs, flags.rl_tokens or 0, learnt.value[0])
    choice = replace(choice, reason=f"{choice.reason} {start_rules.say(learnt, study, ' nats' if by_band else '')}")
    record = {"study": str(flags.study), "learnt": asdict(learnt)}
    return Chosen(choice, band, record) if by_band else Chosen(choice, None, {"ratio": learnt.value[0], **record})


def read_scores(run: Path, folders: tuple[Path, ...]) -> dict[str, float]:
    """pass@1 by checkpoint of `run`. Raises UserError for an evaluation of something else, or under other settings."""
    scores: dict[str, float] = {}
    first: Evaluation | None = None
    for folder in folders:
        evaluation = read_evaluation(folder)
        checkpoint = Path(str(evaluation.result["checkpoint"]))
        *above, place, name = ("", "", *checkpoint.parts)
        if place != "checkpoints" or above[-1] not in ("", ".", run.resolve().name):
            raise UserError(f"--evaluations {folder}: of {checkpoint}, which is no checkpoint of --run {run}")
        differing = different_settings(first, evaluation) if first else []
        if differing:
            raise UserError(f"--evaluations {folder}: differs from the first in {'; '.join(differing)}; evaluate all alike")
        if name in scores:
            raise UserError(f"--evaluations {folder}: {name} has another evaluation; name each checkpoint once")
        if math.isnan(number(evaluation.result, "pass_at_1")):
            raise UserError(f"--evaluations {folder}: has no pass@1, only a model's raw scores: evaluate other problems")
        first = first or evaluation
        scores[name] = number(evaluation.result, "pass_at_1")
    return scores


def table(epochs: list[Epoch], chosen: Chosen, missing: set[str]) -> str:
    """Epochs as aligned text, the chosen one marked."""
    band, scores = chosen.band, chosen.record.get("scores", {})
    head = f"  band {start_rules.shown(band)}" if band else "  pass@1" if scores else ""
    lines = [f"  {'epoch':>5} {'checkpoint':<14} {'tokens':>14} {'val loss':>9} {'entropy':>8}{head}"]
    for epoch in epochs:
        more = f"  {scores[epoch.checkpoint]:.4f}" if epoch.checkpoint in scores else ""
        if band:
            inside = distance_to_band(epoch.entropy, band) == 0
            more = f"  {'inside' if inside else 'below' if epoch.entropy < band[0] else 'above'}"
        lines.append(
            f"{'>' if epoch.checkpoint == chosen.choice.checkpoint else ' '} {epoch.epoch:>5g} {epoch.checkpoint:<14} "
            f"{epoch.tokens:>14,.0f} {epoch.loss:>9.4f} {epoch.entropy:>8.4f}{more}"
            f"{' (checkpoint deleted)' if epoch.checkpoint in missing else ''}"
        )
    return "\n".join(lines)


def main(flags: Flags) -> None:
    """Choose, tell and record; raises UserError when nothing can be chosen."""
    if flags.dry_run and not (flags.run / "metrics.jsonl").exists():
        how = f"entropy {flags.band[0]:g} to {flags.band[1]:g} nats" if flags.rule == "band" else f"rule {flags.rule}"
        if flags.study is not None:
            start_rules.read_study(flags.study)
            how = f"rule {flags.rule}, learnt from {flags.study}"
        print(f"dry run of select: {how}", file=sys.stderr)
        print(f"not checked: --run {flags.run}: not there", file=sys.stderr)
        print(flags.run / "checkpoints" / "step_N")
        return
    run = read_run(flags.run)
    epochs = epoch_checkpoints(run)
    missing = {epoch.checkpoint for epoch in epochs if not (flags.run / "checkpoints" / epoch.checkpoint).is_dir()}
    if epochs and len(missing) == len(epochs):
        raise UserError(
            f"--run {flags.run}: none of its {len(epochs)} epoch checkpoints is left under checkpoints/; keep them"
        )
    chosen = choose(flags, [epoch for epoch in epochs if epoch.checkpoint not in missing])
    choice = chosen.choice
    if missing:
        choice = replace(choice, reason=f"{choice.reason} Left out, because deleted: {', '.join(sorted(missing))}.")
    print(f"{table(epochs, chosen, missing)}\n{choice.reason}", file=sys.stderr)
    record = {
        **asdict(choice),
        "rule": flags.rule,
        "band": None if chosen.band is None else list(chosen.band),
        **chosen.record,
        "epochs": [asdict(epoch) for epoch in epochs],
        "missing": sorted(missing),
    }
    if not flags.dry_run:
        partial = flags.run / "selection.json.partial"
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, flags.run / "selection.json")
    print(flags.run / "checkpoints" / choice.checkpoint)


if __name__ == "__main__":
    run_main(lambda: main(parse(Flags, "select_checkpoint.py", (Flags.__doc__ or ""), sys.argv[1:])))
