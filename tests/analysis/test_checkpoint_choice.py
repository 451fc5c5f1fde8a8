"""The choice by entropy, and the tool that makes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ring.analysis.checkpoint_choice import choose_by_loss, choose_by_ratio, choose_by_score, choose_checkpoint
from megatron_ring.analysis.read_run import Epoch
from megatron_ring.errors import UserError
from tests.analysis.plausible import write_sft
from tests.analysis.test_start_rules import start
from tests.processes import run
from tools import select_checkpoint

TOOL = Path(__file__).resolve().parents[2] / "tools" / "select_checkpoint.py"


def epochs(*entropies: float, losses: tuple[float, ...] = ()) -> list[Epoch]:
    """Epoch i+1 at step 10·(i+1) with the given validation entropy; losses fall unless given."""
    values = losses or tuple(1 / (index + 1) for index in range(len(entropies)))
    return [
        Epoch(f"step_{10 * index}", index, 10 * index, 1000.0 * index, entropy, loss)
        for index, (entropy, loss) in enumerate(zip(entropies, values, strict=True), start=1)
    ]


@pytest.mark.parametrize(
    ("entropies", "epoch"),
    [
        ((0.8, 0.49, 0.41, 0.31, 0.2), 4),  # the latest inside, not the first and not the last of all
        ((0.8, 0.5, 0.2), 2),  # the ends belong to the band
        ((0.8, 0.3, 0.2), 2),
        ((0.45, 0.8, 0.2), 1),  # entropy need not fall
        ((0.9, 0.7, 0.6), 3),  # none inside: the nearest above
        ((0.25, 0.2, 0.1), 1),  # none inside: the nearest below
        ((0.55, 0.25), 2),  # equally far: the later
        ((0.6,), 1),
    ],
)
def test_choice(entropies: tuple[float, ...], epoch: int) -> None:
    choice = choose_checkpoint(epochs(*entropies), band=(0.3, 0.5))
    assert (choice.epoch, choice.checkpoint, choice.entropy) == (epoch, f"step_{10 * epoch}", entropies[epoch - 1])


def test_order_of_the_list_does_not_matter() -> None:
    assert choose_checkpoint(list(reversed(epochs(0.49, 0.4, 0.1)))).epoch == 2


def test_reason_tells_the_numbers() -> None:
    inside = choose_checkpoint(epochs(0.8, 0.45, 0.35, 0.2)).reason
    assert "entropy 0.350" in inside and "latest of 2" in inside and "0.3–0.5" in inside
    assert "epoch 4, but the band decides" in inside  # its loss was lower
    above = choose_checkpoint(epochs(0.9, 0.6)).reason
    assert "No checkpoint lies in the band" in above and "0.600 to 0.900" in above and "0.100 above" in above
    assert "0.100 below" in choose_checkpoint(epochs(0.2, 0.1)).reason
    assert "\n" not in inside + above


def test_nothing_to_choose_from() -> None:
    with pytest.raises(UserError, match="no epoch checkpoint"):
        choose_checkpoint([])
    with pytest.raises(UserError, match="--entropy-low"):
        choose_checkpoint(epochs(0.4), band=(0.5, 0.3))


def run_tool(*flags: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, TOOL, *flags], timeout=60)


def test_tool_prints_the_path_alone_and_records_the_choice(tmp_path: Path) -> None:
    run = write_sft(tmp_path / "sft")
    done = run_tool("--run", str(run), "--entropy-low", "0.3", "--entropy-high", "0.5")
    assert (done.returncode, done.stdout) == (0, f"{run}/checkpoints/step_200\n")
    assert "latest of 3" in done.stderr and "step_240" in done.stderr
    record = json.loads((run / "selection.json").read_text())
    assert (record["checkpoint"], record["band"], len(record["epochs"])) == ("step_200", [0.3, 0.5], 6)
    assert not list(run.glob("*.partial"))


def test_tool_skips_deleted_checkpoints_and_says_so(tmp_path: Path) -> None:
    run = write_sft(tmp_path / "sft")
    (run / "checkpoints" / "step_200").rmdir()
    done = run_tool("--run", str(run))
    assert done.stdout == f"{run}/checkpoints/step_160\n"
    assert "Left out, because deleted: step_200" in json.loads((run / "selection.json").read_text())["reason"]


def test_tool_ends_with_one_line(tmp_path: Path) -> None:
    done = run_tool("--run", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "metrics.jsonl" in done.stderr and done.stderr.count("\n") == 1


def test_the_other_rules() -> None:
    found = epochs(0.8, 0.5, 0.4, 0.2, losses=(0.9, 0.5, 0.5, 0.6))
    by_loss = choose_by_loss(found)
    assert by_loss.epoch == 2 and "lowest validation loss, 0.5000, of 4 checkpoints" in by_loss.reason
    by_score = choose_by_score(found, {"step_10": 0.1, "step_30": 0.4, "step_40": 0.4})
    assert by_score.epoch == 3 and "best pass@1 before RL, 0.4000, of 3 checkpoints" in by_score.reason
    # SFT tokens 1000 to 4000: ratios 6, 3, 2, 1.5. By factor 2.5 is nearer to 3 than to 2 (1.2 against 1.25).
    assert [choose_by_ratio(found, 6000, ratio).epoch for ratio in (100, 2.5, 2.4, 1.7, 0.01)] == [1, 2, 3, 4, 4]
    assert "a token efficiency of 3, 6,000 RL tokens over 2,000 SFT tokens" in choose_by_ratio(found, 6000, 3).reason
    for choose in (lambda: choose_by_loss([]), lambda: choose_by_score(found, {"step_70": 1.0})):
        with pytest.raises(UserError, match=r"no epoch checkpoint|none is of an epoch checkpoint"):
            choose()


def select(capsys: pytest.CaptureFixture[str], **flags: object) -> tuple[str, str]:
    select_checkpoint.main(select_checkpoint.Flags(**flags))  # type: ignore[arg-type]
    said = capsys.readouterr()
    return said.out.strip().rsplit("/", 1)[1], said.err


def write_scores(folder: Path, sft: Path, rates: dict[str, float], **more: object) -> tuple[Path, ...]:
    for name, rate in rates.items():
        (folder / name).mkdir(parents=True)
        result = {"checkpoint": str(sft / "checkpoints" / name), "problems": 9, "pass_at_1": rate, **more}
        (folder / name / "result.json").write_text(json.dumps(result))
    return tuple(folder / name for name in rates)


def test_each_rule_of_the_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft = write_sft(tmp_path / "sft")  # entropies 0.79, 0.59, 0.46, 0.37, 0.31, 0.27; 655,360 tokens an epoch
    record = lambda: json.loads((sft / "selection.json").read_text())  # noqa: E731
    losses = [epoch["loss"] for epoch in (select(capsys, run=sft), record())[1]["epochs"]]
    lowest = f"step_{40 * (1 + losses.index(min(losses)))}"
    name, said = select(capsys, run=sft, rule="validation")
    assert name == lowest == record()["checkpoint"] and record()["rule"] == "validation" and record()["band"] is None
    assert "lowest validation loss" in said
    folders = write_scores(tmp_path / "scores", sft, {"step_40": 0.2, "step_120": 0.5, "step_240": 0.4})
    name, said = select(capsys, run=sft, rule="score", evaluations=folders)
    assert name == "step_120" and "Not evaluated: step_80, step_160, step_200." in said and "0.5000" in said
    name, said = select(capsys, run=sft, rule="token-efficiency", ratio=2.0, rl_tokens=2_621_440.0)
    assert name == "step_80" and "a token efficiency of 2, " in said
    study = tmp_path / "study.json"
    rates = {1: 0.2, 2: 0.6, 4: 0.5}
    starts = [start(seed=seed, epochs=count, sft_tokens=1000 * count, validation_entropy=0.9 / count, last=rate)
              for seed in (1, 2) for count, rate in rates.items()]  # fmt: skip
    study.write_text(json.dumps({"starts": starts}))
    name, said = select(capsys, run=sft, study=study)  # 0.45 nats was best in both seeds
    assert (
        name == "step_120" and "nearest is epoch 3" in said and "Learnt from 2 seed(s) and 6 starts: 0.45–0.45 nats" in said
    )
    assert record()["learnt"]["value"] == [0.45, 0.45] == record()["band"]
    name, said = select(capsys, run=sft, rule="token-efficiency", study=study, rl_tokens=2_621_440.0)
    assert name == "step_80" and record()["ratio"] == 2.0 and "mean regret is 0.0 points" in said


def test_the_report_shows_a_choice_without_a_band(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_ring.analysis.read_run import read_selection

    sft = write_sft(tmp_path / "sft")
    select(capsys, run=sft, rule="validation")
    assert (read_selection(sft) or {})["band"] is None
    (sft / "selection.json").write_text(json.dumps({"checkpoint": "step_40", "reason": "r", "band": None}))
    with pytest.raises(UserError, match="no band"):
        read_selection(sft)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rule": "validation", "entropy_low": 0.1}, "--entropy-low belongs to --rule band, --rule is validation"),
        ({"rule": "score"}, "--rule score: give --evaluations"),
        ({"rule": "score", "study": Path("s")}, "--study belongs to --rule band or token-efficiency"),
        ({"evaluations": (Path("e"),)}, "--evaluations belongs to --rule score"),
        ({"rule": "token-efficiency", "rl_tokens": 5.0}, "give either --ratio or --study"),
        ({"rule": "token-efficiency", "ratio": 1.0}, "give --rl-tokens"),
        ({"rule": "token-efficiency", "ratio": -1.0, "rl_tokens": 5.0}, "--ratio is -1.0, not a positive number"),
        ({"study": Path("s"), "entropy_high": 0.4}, "leave --entropy-low and --entropy-high out"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select_checkpoint.Flags(run=Path("r"), **flags)  # type: ignore[arg-type]


def test_evaluations_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft = write_sft(tmp_path / "sft")
    first = write_scores(tmp_path / "a", sft, {"step_40": 0.2})
    for other, message in (
        (write_scores(tmp_path / "b", tmp_path / "other", {"step_80": 0.2}), "is no checkpoint of --run"),
        (write_scores(tmp_path / "c", sft, {"step_80": 0.2}, temperature=0.5), "differs from the first in temperature"),
        (write_scores(tmp_path / "d", sft, {"step_40": 0.2}), "step_40 has another evaluation"),
    ):
        with pytest.raises(UserError, match=message):
            select(capsys, run=sft, rule="score", evaluations=first + other)
