"""An RL run killed in every phase of a step, one after another, ends with the numbers of one that was left alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from megatron_ring.checkpoint.saving import CheckpointSaver
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.reward_models.policy_scorer import RewardModelScorer
from megatron_ring.rollout.judge_scorer import JudgeScorer
from megatron_ring.rollout.scoring import RolloutScorer
from megatron_ring.sampler.sampler import Sampler
from megatron_ring.training.first_pass import FirstPass
from megatron_ring.training.trainer import Trainer
from tests.judging.rule_server import RuleServer
from tests.mains.conftest import command, environment, rl_flags, run, start
from tests.mains.test_pipeline import metrics, timeless, weights

WATCH = Path(__file__).parent / "watch"


class Kill(NamedTuple):
    """Where a run is killed: in a function, from a 0-based step on, behind so many Python calls from within it."""

    function: Callable[..., Any]
    step: int
    calls: int


# With a checkpoint after every second step: before the first one, twice behind one, in the second.
KILLS = {
    "sampling": Kill(Sampler.generate, 1, 2_000),
    "scoring": Kill(RolloutScorer.finish, 2, 10),
    "training": Kill(Trainer.train_step, 3, 5_000),
    "saving": Kill(CheckpointSaver._write, 4, 200),
}
# The same, and in the midst of judging and of the reward model's passes.
WITH_MODELS = {
    "sampling": KILLS["sampling"],
    "judging": Kill(JudgeScorer.score, 1, 300),
    "reward model": Kill(RewardModelScorer.score, 2, 300),
    "training": KILLS["training"],
    "saving": KILLS["saving"],
}
COMPOSED = {"math": {"parts": [
    {"name": "right", "domain": "math"},
    {"name": "model", "domain": "reward-model", "sigmoid": True, "weight": 0.3},
    {"name": "judge", "domain": "judge", "weight": 0.5, "rules": [{"domain": "format/one_box", "with": {}}]},
    {"name": "pairs", "domain": "judge/pairwise", "weight": 0.2},
]}}  # fmt: skip
# Before every update of a step but the first: half of step 4 is done, the last checkpoint is of step 2.
BETWEEN_UPDATES = Kill(FirstPass.renewed, 3, 1)


def descendants(pid: int) -> Iterator[int]:
    """A process and all below it, the deepest first."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    for child in children:
        yield from descendants(int(child))
    yield pid


def kill_within(arguments: list[str], run_dir: Path, kill: Kill, marker: Path) -> None:
    """Start, wait until the first process has frozen where `kill` says, kill -9 everything that was started."""
    code = kill.function.__code__
    asked = {"file": code.co_filename, "function": code.co_qualname, "metrics": str(run_dir / "metrics.jsonl"),
             "lines": kill.step, "calls": kill.calls, "marker": str(marker)}  # fmt: skip
    env = environment(FREEZE=json.dumps(asked))
    env["PYTHONPATH"] = f"{WATCH}:{env['PYTHONPATH']}"
    process = start(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not marker.exists():
            assert process.poll() is None, (kill, process.returncode, process.stderr.read() if process.stderr else "")
            time.sleep(0.01)  # as long as the machine takes: the test's own time limit says where it hangs
    finally:
        for pid in list(descendants(process.pid)):
            with contextlib.suppress(ProcessLookupError):  # it ended with one of the others
                os.kill(pid, signal.SIGKILL)
        process.wait()


def unfinished(checkpoint: Path) -> dict[str, bytes]:
    """What each replica carries over to the next step."""
    return {path.name: path.read_bytes() for path in checkpoint.glob("unfinished*")}


def save_reward_model(folder: Path) -> None:
    """A random one."""
    from megatron_ring.checkpoint.saving import save_checkpoint
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context

    shape = replace(RING_TINY, num_layers=2, head="score")
    here = context.initialize(ParallelConfig(), shape, seed=0)
    model = build_model(shape, here)
    initialize_weights(model, seed=3)
    save_checkpoint(folder, 0, model, None, here, {})


SHORT = "--sampling.max-new-tokens 16"
NARROW = "--sampling.weights fp8 --objective.old-logprobs recomputed --correction.name icepop"


@pytest.fixture
def scoring_flags(tmp_path: Path, run_on: Callable[..., list[Any]]) -> Iterator[str]:
    """A reward model, off-loaded, and a judge's server in the rewards, which are shaped by running numbers."""
    run_on(1, save_reward_model, tmp_path / "scores")
    (tmp_path / "rewards.json").write_text(json.dumps(COMPOSED))
    with RuleServer() as server:
        yield (
            f"--rewards.compositions {tmp_path}/rewards.json --rewards.reward-model {tmp_path}/scores/step_0 "
            f"--rewards.offload --rewards.judge.url {server.url} --rewards.judge.model rule --rewards.judge.again 0.5 "
            f"--shaping.normalise running --shaping.length-weight 0.1 --alarms.action warn "
            f"--alarms.length-correlation 0.9 --alarms.rule-gap 0.1 --alarms.window 2"
        )


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("processes", "flags", "kills"),
    [
        (1, "--no-async-save", WITH_MODELS),
        (2, f"{SHORT} --budget.max-cuts 2 --prompts-per-step 8 --sampling.max-batch 4 --correction.routes replay {NARROW}",
         KILLS),
    ],
    ids=["whole", "partial"],
)  # fmt: skip
def test_killed_in_every_phase(
    tiny_data: Path, tmp_path: Path, sft_checkpoint: Path, processes: int, flags: str, kills: dict[str, Kill],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    models = request.getfixturevalue("scoring_flags") if kills is WITH_MODELS else ""
    more = [*flags.split(), *models.split(), "--steps", "5", "--save-every", "2", "--budget.tokens", "250"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    done = run(command("megatron_ring.rl", *rl_flags(tiny_data, alone, sft_checkpoint, *more), processes=processes))
    assert done.returncode == 0, done.stderr
    arguments = command("megatron_ring.rl", *rl_flags(tiny_data, killed, sft_checkpoint, *more), processes=processes)
    for phase, kill in kills.items():
        kill_within(arguments, killed, kill, tmp_path / phase)
    left = {path.name for path in (killed / "checkpoints").iterdir()}
    assert left == {"latest", "step_2", ".step_4.tmp"} or "step_4" in left, left
    done = run(arguments)
    assert done.returncode == 0 and "continuing after step " in done.stdout, (done.stdout, done.stderr)
    assert timeless(metrics(killed)) == timeless(metrics(alone))
    assert weights(killed) == weights(alone)
    for step in range(1, 6):
        assert (killed / "rollouts" / f"step_{step}.jsonl").read_bytes() == (
            alone / "rollouts" / f"step_{step}.jsonl"
        ).read_bytes()
    held, again = (unfinished(run_dir / "checkpoints" / "step_4") for run_dir in (alone, killed))
    assert held == again and len(held) == (2 if processes == 2 else 0)
    if NARROW in flags:  # in fp32 there is no other mismatch to speak of
        assert all(1e-4 < row["mismatch/logprob_abs_mean"] < 0.1 for row in metrics(alone))
    if models:
        rows = metrics(alone)
        assert all(0 < row["reward_parts/pairs"] < 1 and row["shaping/std/math"] > 0 for row in rows)
        assert any("judge/disagreement" in row for row in rows)


@pytest.mark.slow
def test_killed_between_the_updates_of_a_step(tiny_data: Path, tmp_path: Path, sft_checkpoint: Path) -> None:
    more = [
        "--updates-per-step",
        "4",
        "--steps",
        "5",
        "--save-every",
        "2",
        "--budget.tokens",
        "250",
        "--optimizer.lr",
        "1e-3",
        "--no-async-save",  # the checkpoint of step 2 is whole before step 4, however busy the machine is
    ]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    done = run(command("megatron_ring.rl", *rl_flags(tiny_data, alone, sft_checkpoint, *more)))
    assert done.returncode == 0 and "4 updates a step" in done.stdout, done.stderr
    arguments = command("megatron_ring.rl", *rl_flags(tiny_data, killed, sft_checkpoint, *more))
    kill_within(arguments, killed, BETWEEN_UPDATES, tmp_path / "marker")
    done = run(arguments)
    assert done.returncode == 0 and "continuing after step 2" in done.stdout, (done.stdout, done.stderr)
    rows = metrics(alone)
    assert timeless(metrics(killed)) == timeless(rows) and weights(killed) == weights(alone)
    assert [[row[f"tokens/trained/update_{number}"] for number in (1, 2, 3, 4)] for row in rows] == [[63, 63, 62, 62]] * 5
    assert all(row["ratio/max/update_1"] < 1.001 < row["ratio/max/update_4"] for row in rows)
