"""Choose the SFT checkpoint that RL starts from, by validation entropy.

Prints the chosen checkpoint's path alone on stdout, so a launcher can write `CKPT=$(python tools/select_checkpoint.py
--run …)`; the table and the reason go to stderr, and selection.json into the run directory.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

from megatron_ring.analysis.checkpoint_choice import PAPER_BAND, Choice, choose_checkpoint, distance_to_band
from megatron_ring.analysis.read_run import Epoch, epoch_checkpoints, read_run
from megatron_ring.errors import UserError, run_main


@dataclass(frozen=True)
class Flags:
    """Choose the SFT checkpoint for RL: the latest one whose validation entropy lies in the band."""

    run: Path
    """Run directory of SFT: metrics.jsonl and checkpoints/."""
    entropy_low: float = PAPER_BAND[0]
    """Lower end of the band, nats per token: below it RL explores too little."""
    entropy_high: float = PAPER_BAND[1]
    """Upper end of the band, nats per token: above it RL learns slowly."""
    dry_run: bool = False
    """Choose from what is there already, and write nothing."""


def table(epochs: list[Epoch], choice: Choice, band: tuple[float, float], missing: set[str]) -> str:
    """Epochs as aligned text, the chosen one marked."""
    lines = [
        f"  {'epoch':>5} {'checkpoint':<14} {'tokens':>14} {'val loss':>9} {'entropy':>8}  band {band[0]:g}–{band[1]:g}"
    ]
    for epoch in epochs:
        side = "inside" if distance_to_band(epoch.entropy, band) == 0 else "below" if epoch.entropy < band[0] else "above"
        lines.append(
            f"{'>' if epoch.checkpoint == choice.checkpoint else ' '} {epoch.epoch:>5g} {epoch.checkpoint:<14} "
            f"{epoch.tokens:>14,.0f} {epoch.loss:>9.4f} {epoch.entropy:>8.4f}  {side}"
            f"{' (checkpoint deleted)' if epoch.checkpoint in missing else ''}"
        )
    return "\n".join(lines)


def main(flags: Flags) -> None:
    """Choose, tell and record; raises UserError when nothing can be chosen."""
    if flags.dry_run and not (flags.run / "metrics.jsonl").exists():
        print(f"dry run of select: entropy {flags.entropy_low:g} to {flags.entropy_high:g} nats", file=sys.stderr)
        print(f"not checked: --run {flags.run}: not there", file=sys.stderr)
        print(flags.run / "checkpoints" / "step_N")
        return
    run = read_run(flags.run)
    band = (flags.entropy_low, flags.entropy_high)
    epochs = epoch_checkpoints(run)
    missing = {epoch.checkpoint for epoch in epochs if not (flags.run / "checkpoints" / epoch.checkpoint).is_dir()}
    if epochs and len(missing) == len(epochs):
        raise UserError(
            f"--run {flags.run}: none of its {len(epochs)} epoch checkpoints is left under checkpoints/; keep them"
        )
    choice = choose_checkpoint([epoch for epoch in epochs if epoch.checkpoint not in missing], band)
    if missing:
        left_out = f" Left out, because deleted: {', '.join(sorted(missing))}."
        choice = replace(choice, reason=choice.reason + left_out)
    print(f"{table(epochs, choice, band, missing)}\n{choice.reason}", file=sys.stderr)
    record = {
        **asdict(choice),
        "band": list(band),
        "epochs": [asdict(epoch) for epoch in epochs],
        "missing": sorted(missing),
    }
    if not flags.dry_run:
        partial = flags.run / "selection.json.partial"
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, flags.run / "selection.json")
    print(flags.run / "checkpoints" / choice.checkpoint)


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Flags)))
