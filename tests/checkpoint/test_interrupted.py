"""Saving in the background: what is saved, what failures leave, and a dozen kills at random moments."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.errors import UserError
from tests.checkpoint.test_saving import continue_from, steps, trainer_for
from tests.processes import start

KILLS, LAST_STEP = 12, 24


def contents(folder: Path) -> dict[str, bytes]:
    """The data files of a checkpoint (`.metadata` carries a random id of the save)."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.distcp"))}


def save_and_destroy(folder: Path) -> None:
    """Save the same state twice: once waiting, once in the background while the weights are overwritten at once."""
    from megatron_ring.checkpoint.saving import CheckpointSaver

    trainer, here = trainer_for(ParallelConfig())
    steps(trainer, here, 0, 2)
    with CheckpointSaver(folder / "waiting", here, background=False) as saver:
        saver.save(2, trainer.model, trainer.optimizer, {"tokens": 12})
    with CheckpointSaver(folder / "meanwhile", here) as saver:
        saver.save(2, trainer.model, trainer.optimizer, {"tokens": 12})
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.zero_()
        for state in trainer.optimizer.chained_optimizers[0].optimizer.state.values():
            state["exp_avg"].fill_(1e9)


@pytest.mark.distributed
def test_what_is_saved_is_what_was_there(run_on, tmp_path: Path) -> None:
    run_on(1, save_and_destroy, tmp_path)
    waiting, meanwhile = (contents(tmp_path / name / "step_2") for name in ("waiting", "meanwhile"))
    assert waiting and waiting == meanwhile


def save_five(folder: Path) -> None:
    from megatron_ring.checkpoint.saving import CheckpointSaver

    trainer, here = trainer_for(ParallelConfig(tensor=2))
    with CheckpointSaver(folder, here, keep_last=2) as saver:
        for step in range(1, 6):
            saver.save(step, trainer.model, trainer.optimizer, {})


@pytest.mark.distributed
def test_only_the_last_ones_are_kept(run_on, tmp_path: Path) -> None:
    run_on(2, save_five, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_4", "step_5"]
    assert (tmp_path / "latest").read_text() == "step_5\n"


def fail_on_one_rank(folder: Path, limited_rank: int) -> tuple[str, str]:
    """A save that works, then one during which a rank's disk is full; messages of waiting, and of checking before."""
    import resource

    from megatron_ring.checkpoint.saving import CheckpointSaver

    trainer, here = trainer_for(ParallelConfig(expert=2))
    steps(trainer, here, 0, 3)
    saver = CheckpointSaver(folder, here)
    saver.save(3, trainer.model, trainer.optimizer, {"tokens": 12})
    steps(trainer, here, 3, 1)
    saver.wait()
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if here.rank == limited_rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    checked = ""
    try:
        saver.save(4, trainer.model, trainer.optimizer, {"tokens": 16})
        deadline = time.monotonic() + 60
        while here.rank == 0 and not checked and time.monotonic() < deadline:  # the main process hears of any rank's
            try:
                saver.check()
                time.sleep(0.01)
            except UserError as error:
                checked = str(error)
        saver.wait()
    except UserError as error:
        return str(error), checked
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    return "", checked


@pytest.mark.distributed
@pytest.mark.parametrize("limited_rank", [0, 1])
def test_a_failure_on_one_rank_is_told_on_all(run_on, tmp_path: Path, limited_rank: int) -> None:
    messages = run_on(2, fail_on_one_rank, tmp_path, limited_rank)
    for message in (messages[0][0], messages[1][0], messages[0][1]):
        assert "step_4: saving failed: " in message and message.endswith("step_3 is intact"), messages
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_3"]
    assert len(run_on(1, continue_from, ParallelConfig(), tmp_path)[0]) == 3


def load_message(folder: Path) -> str:
    from megatron_ring.checkpoint.loading import load_checkpoint

    trainer, here = trainer_for(ParallelConfig(tensor=2))
    try:
        load_checkpoint(folder, trainer.model, here, trainer.optimizer)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.distributed
def test_a_flipped_byte_in_any_file_is_named(run_on, tmp_path: Path) -> None:
    run_on(2, save_five, tmp_path)
    folder = tmp_path / "step_5"
    assert run_on(2, load_message, folder) == ["", ""]
    names = sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    assert {".metadata", "__0_0.distcp", "__1_0.distcp", "common.pt"} <= set(names)
    generator = random.Random(0)
    for name in names:
        whole = (folder / name).read_bytes()
        flipped = bytearray(whole)
        flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
        (folder / name).write_bytes(flipped)
        for message in run_on(2, load_message, folder):
            assert message.endswith(f"damaged (the content is not what was saved): {name}")
        (folder / name).write_bytes(whole)


def train_and_save_for_ever(folder: Path) -> None:
    """Continue from the last checkpoint and save after every step; print every step whose checkpoint is whole."""
    torch.set_num_threads(1)
    from megatron_ring.checkpoint.folder import latest_checkpoint
    from megatron_ring.checkpoint.loading import load_checkpoint
    from megatron_ring.checkpoint.saving import CheckpointSaver

    trainer, here = trainer_for(ParallelConfig())
    done = 0
    if (found := latest_checkpoint(folder)) is not None:
        done, _ = load_checkpoint(found, trainer.model, here, trainer.optimizer)
    print(f"{done}\n", end="", flush=True)
    with CheckpointSaver(folder, here, keep_last=2) as saver:
        for step in range(done + 1, LAST_STEP + 1):
            steps(trainer, here, step, 1)
            saver.save(step, trainer.model, trainer.optimizer, {"step": step})  # waits for the one before
            print(f"{step - 1}\n", end="", flush=True)
    print(f"{LAST_STEP}\n", end="", flush=True)


PROGRAM = """
import sys
from pathlib import Path
from tests.checkpoint.test_interrupted import train_and_save_for_ever
train_and_save_for_ever(Path(sys.argv[1]))
"""


def started(folder: Path) -> Any:
    return start([sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True)


def last_told(process: Any) -> int:
    """The last whole line of a process that has ended; what it had printed before the kill is in the pipe."""
    lines = process.communicate()[0].split("\n")[:-1]
    return int(lines[-1]) if lines else -1


@pytest.mark.slow
def test_a_dozen_kills_lose_nothing(tmp_path: Path) -> None:
    """After each kill `latest` names a whole checkpoint, none that was whole before is lost, and the run goes on from it
    to the same bytes as an undisturbed one."""
    from megatron_ring.checkpoint.folder import latest_checkpoint
    from megatron_ring.checkpoint.manifest import damaged_files, read_manifest

    killed, generator, in_the_middle = tmp_path / "killed", random.Random(1), 0
    for _ in range(KILLS):
        process = started(killed)
        assert process.stdout.readline()
        time.sleep(generator.uniform(0.0, 0.4))
        process.kill()
        told = last_told(process)
        in_the_middle += any(killed.glob(".step_*.tmp")) if killed.exists() else 0
        found = latest_checkpoint(killed)
        if found is None:
            assert told < 1
            continue
        manifest = read_manifest(found)
        assert damaged_files(found, manifest) == []
        assert manifest["extra"]["step"] == manifest["step"] >= told
    assert in_the_middle >= KILLS // 4  # the kills did hit saves
    for folder in (killed, tmp_path / "undisturbed"):
        process = started(folder)
        assert last_told(process) == LAST_STEP and process.returncode == 0
    assert contents(killed / f"step_{LAST_STEP}") == contents(tmp_path / "undisturbed" / f"step_{LAST_STEP}")
    assert not list(killed.glob(".step_*"))


def save_weights_alone(folder: Path) -> None:
    """The same state with and without the optimizer's; the smaller one fills a model, and cannot be continued from."""
    from megatron_ring.checkpoint.loading import load_checkpoint
    from megatron_ring.checkpoint.saving import CheckpointSaver

    trainer, here = trainer_for(ParallelConfig())
    steps(trainer, here, 0, 2)
    for name, kept in (("whole", True), ("weights", False)):
        with CheckpointSaver(folder / name, here, with_optimizer=kept) as saver:
            saver.save(2, trainer.model, trainer.optimizer, {"tokens": 12})
    sizes = {name: sum(map(len, contents(folder / name / "step_2").values())) for name in ("whole", "weights")}
    assert sizes["weights"] < sizes["whole"] / 2
    wanted = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    assert load_checkpoint(folder / "weights" / "step_2", trainer.model, here) == (2, {"tokens": 12})
    assert all(torch.equal(parameter, before) for parameter, before in zip(trainer.model.parameters(), wanted, strict=True))
    with pytest.raises(UserError, match="holds weights but no optimizer state: give it to --init-from"):
        load_checkpoint(folder / "weights" / "step_2", trainer.model, here, trainer.optimizer)


@pytest.mark.distributed
def test_a_checkpoint_of_weights_alone(run_on, tmp_path: Path) -> None:
    run_on(1, save_weights_alone, tmp_path)
