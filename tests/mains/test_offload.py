"""RL with --offload-optimizer: bit for bit the run without it, and the state is where it should be in every phase."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.layouts import LAYOUTS
from tests.mains.conftest import command, rl_flags, run
from tests.mains.test_objectives import train_here
from tests.mains.test_pipeline import metrics, timeless, weights
from tests.training.test_offload import storages

# Old log-probs are recomputed, a reference that waits on the host is scored, in the loss; each second step is evaluated
# (so that a save finds the state away) and saved.
MORE = ["--steps", "4", "--save-every", "2", "--prompts-per-step", "2", "--budget.tokens", "90",
        "--sampling.max-new-tokens", "16",
        "--objective.old-logprobs", "recomputed", "--correction.name", "icepop",
        "--objective.kl-beta", "0.1", "--reference.place", "host", "--optimizer.lr", "1e-3",
        "--evaluation.every", "2", "--evaluation.max-new-tokens", "8"]  # fmt: skip
OFFLOAD = "--offload-optimizer"


@pytest.fixture(scope="module")
def held_out(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four problems: what matters is that there is an evaluation."""
    path = tmp_path_factory.mktemp("held-out") / "four.jsonl"
    path.write_text("".join((tiny_data / "heldout.jsonl").read_text().splitlines(keepends=True)[:4]))
    return str(path)


def observed(flags: list[str]) -> list[tuple[str, dict[str, int], dict[str, int]]]:
    """Run the main here; the trainer's storages whenever something that matters begins, in order."""
    from megatron_ring.checkpoint import saving
    from megatron_ring.rollout import opening
    from megatron_ring.sampler.runner import ModelRunner
    from megatron_ring.training import first_pass, reference
    from megatron_ring.training.trainer import Trainer

    trainers: list[Any] = []
    seen: list[tuple[str, dict[str, int], dict[str, int]]] = []

    def watch(owner: Any, name: str) -> Callable[..., Any]:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            seen.append((name, *storages(trainers[0])))
            return original(*args, **kwargs)

        patch.setattr(owner, name, watched)
        return original

    class Watched(Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "Trainer", Watched)
        for owner, name in ((ModelRunner, "launch"), (first_pass, "evaluated_logprobs"), (reference, "evaluated_logprobs"),
                            (Trainer, "train_step"), (saving, "_pieces")):  # fmt: skip
            watch(owner, name)
        train_here(flags)
    return seen


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "more"),
    [("one", ["--precision", "bf16", "--objective.kl-place", "reward"]), ("dp2", []),
     ("ep2", ["--budget.max-cuts", "2", "--sampling.max-batch", "4"])],
)  # fmt: skip
def test_nothing_but_the_place_of_memory_differs(
    run_on: Any, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path, held_out: str, layout: str, more: list[str]
) -> None:
    processes, parallel = LAYOUTS[layout]
    more = [*MORE, *more, "--evaluation.prompts", held_out, "--parallel.expert", str(parallel.expert)]
    plain, away, parts = (tmp_path / name for name in ("plain", "away", "parts"))
    run_on(processes, train_here, rl_flags(tiny_data, plain, sft_checkpoint, *more))
    for seen in run_on(processes, observed, rl_flags(tiny_data, away, sft_checkpoint, *more, OFFLOAD)):
        check_places(seen)
    # Stopped after two steps and continued: with, then without.
    run_on(processes, train_here, rl_flags(tiny_data, parts, sft_checkpoint, *more, OFFLOAD, "--steps", "2"))
    run_on(processes, train_here, rl_flags(tiny_data, parts, sft_checkpoint, *more))
    for other in (away, parts):
        assert timeless(metrics(other)) == timeless(metrics(plain))
        assert weights(other) == weights(plain)
        for step in range(1, 5):
            name = f"rollouts/step_{step}.jsonl"
            assert (other / name).read_bytes() == (plain / name).read_bytes()
    assert len({row["grad_norm"] for row in metrics(plain)}) == 4 and all(row["grad_norm"] > 0 for row in metrics(plain))


def check_places(seen: list[tuple[str, dict[str, int], dict[str, int]]]) -> None:
    """Away whenever the sampler runs, there whenever anything else does that wants it. (Log-probs for a KL in the reward are
    scored before it comes back: they need weights alone.)"""
    assert {name for name, _, _ in seen} == {"launch", "evaluated_logprobs", "train_step", "_pieces"}
    away = {"masters": 0, "moments": 0, "gradients": 0}
    for name, have, whole in seen:
        assert have["weights"] == whole["weights"] > 0
        if name == "launch":
            assert have == whole | away
        elif name != "evaluated_logprobs":
            # Saving brings the state back itself as well, but here it has been; gradients come with the rest.
            assert have == whole and whole["gradients"] > 0
    assert [whole["moments"] > 0 for name, _, whole in seen if name == "train_step"] == [False, True, True, True]


@pytest.mark.slow
def test_times_and_memory_are_told(tiny_data: Path, tmp_path: Path, sft_checkpoint: Path) -> None:
    out = tmp_path / "run"
    flags = rl_flags(tiny_data, out, sft_checkpoint, OFFLOAD, "--steps", "3", "--save-every", "2")
    done = run(command("megatron_ring.rl", *flags))
    assert done.returncode == 0, done.stderr
    rows = metrics(out)
    for row in rows:
        times = {key.removeprefix("time/"): value for key, value in row.items() if key.startswith("time/")}
        total = times.pop("step")
        assert sum(times.values()) == pytest.approx(total) and all(value >= 0 for value in times.values())
        assert times["offload"] > 0 and times["return"] > 0 and row["processor/offload"] > 0
    parameters = 895_616  # of ring-tiny in fp32: no masters; two moments once there are any, and gradients
    offloaded, freed = ([row[f"memory/{name}_gib"] * 2**30 for row in rows] for name in ("offloaded", "freed"))
    assert offloaded == [0, pytest.approx(8 * parameters, rel=0.01), offloaded[1]]
    assert [a - b for a, b in zip(freed, offloaded, strict=True)] == [pytest.approx(4 * parameters, rel=0.01)] * 3


@pytest.mark.slow
def test_rollbacks_find_the_state(tiny_data: Path, tmp_path: Path, sft_checkpoint: Path, held_out: str) -> None:
    """At a rate of 1 the entropy falls to nothing; each alarm comes after an evaluation, which leaves the state away."""
    lines = []
    for name, more in (("plain", []), ("away", [OFFLOAD])):
        flags = rl_flags(tiny_data, tmp_path / name, sft_checkpoint, "--optimizer.lr", "1", "--steps", "20",
                         "--budget.tokens", "60", "--save-every", "2", "--alarms.action", "rollback",
                         "--alarms.entropy-floor", "0.01", "--alarms.max-rollbacks", "2", "--evaluation.every", "1",
                         "--evaluation.prompts", held_out, *more)  # fmt: skip
        done = run(command("megatron_ring.rl", *flags))
        assert done.returncode == 3 and done.stderr.count("going back to step") == 2, done.stderr
        lines.append(timeless(metrics(tmp_path / name)))
    assert lines[0] == lines[1]
