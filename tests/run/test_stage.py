"""Where first weights come from: a run's `latest` stands for the checkpoint that it names, the same one on every rank."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.stage import ModelOptions
from megatron_ring.errors import UserError
from megatron_ring.planning.checks import Checks
from megatron_ring.run.stage import resolve_shape


def saved(folder: str) -> None:
    """Two checkpoints whose final norm holds their step."""
    from megatron_ring.checkpoint.saving import save_checkpoint
    from megatron_ring.run.stage import open_model

    stage = open_model(ModelOptions(precision="fp32"), RING_TINY)
    for step in (3, 5):
        stage.model.decoder.final_layernorm.weight.data.fill_(step)
        save_checkpoint(Path(folder), step, stage.model, None, stage.context, {})


def loaded(folder: str) -> float:
    """Rank 1 reads `latest` after the run has moved it."""
    from megatron_ring.parallel import collectives
    from megatron_ring.run import stage as under_test

    latest = Path(folder) / "latest"
    stage = under_test.start_model(ModelOptions(parallel=ParallelConfig(expert=2), precision="fp32"), RING_TINY)
    moved = Path(folder) / "moved" / "latest"
    mine = latest if stage.context.rank == 0 else moved
    if stage.context.is_main:
        moved.parent.mkdir()
        moved.write_text("../step_3\n")
    collectives.barrier()
    under_test.set_first_weights(stage, mine, 0)
    return stage.model.decoder.final_layernorm.weight.mean().item()


def test_latest_of_a_run(run_on, tmp_path: Path) -> None:
    run_on(1, saved, str(tmp_path))
    latest = tmp_path / "latest"
    assert latest.read_text() == "step_5\n" and resolve_shape(None, latest) == RING_TINY
    checks = Checks()
    assert checks.shape(None, latest, "--init-from", None) == RING_TINY and not checks.left
    assert checks.done == [f"--init-from {tmp_path / 'step_5'}: the model's shape"]
    assert run_on(2, loaded, str(tmp_path)) == [5.0, 5.0]


def agreed(folder: str) -> list[object]:
    """Rank 1 sees another run, and nothing of rank 0's mistake."""
    from megatron_ring.parallel import collectives, context
    from megatron_ring.run import stage as under_test
    from megatron_ring.run.directory import RunDirectory

    context.start_processes()
    first = collectives.is_main()
    run = Path(folder) / ("mine" if first else "others")
    seen: list[object] = [under_test.latest_of(RunDirectory(run, writes=first))]

    def refuse() -> None:
        raise UserError(f"no such file, says rank {0 if first else 1}")

    try:
        collectives.from_main(refuse)
    except UserError as error:
        seen.append(str(error))
    return [*seen, collectives.from_main(lambda: "first" if first else "second")]


@pytest.mark.distributed
def test_rank_0_reads_and_refuses_for_all(run_on, tmp_path: Path) -> None:
    for name, step in (("mine", 3), ("others", 5)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "latest").write_text(f"step_{step}\n")
        whole = tmp_path / name / "checkpoints" / f"step_{step}"
        whole.mkdir()
        (whole / "manifest.json").write_text('{"model": {}, "step": 1, "files": {}}')
    wanted = [tmp_path / "mine" / "checkpoints" / "step_3", "no such file, says rank 0", "first"]
    assert run_on(2, agreed, str(tmp_path)) == [wanted, wanted]


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    latest, other = tmp_path / "latest", tmp_path / "other"
    latest.write_text("step_9\n")
    with pytest.raises(UserError, match=r"latest names .*step_9: no such checkpoint"):
        resolve_shape(None, latest)
    other.write_text("step_9\n")
    with pytest.raises(UserError, match=r"^[^ ]*other: no such checkpoint"):
        resolve_shape(None, other)
    (tmp_path / "folder" / "latest").mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.json"):  # a folder of that name is a folder
        resolve_shape(None, tmp_path / "folder" / "latest")


@pytest.mark.parametrize(
    ("epochs", "every", "done", "next_one"),
    [(1, None, 0, 10), (2, None, 10, 20), (1, 4, 0, 4), (1, 4, 8, 10), (2, 4, 20, 24)],
)
def test_the_next_save_is_known(epochs: int, every: int | None, done: int, next_one: int) -> None:
    """Page-locked memory is got where one comes before the last step."""
    from megatron_ring.run.epochs import next_save

    config: Any = SimpleNamespace(save_epochs=epochs, save_every=every)
    task: Any = SimpleNamespace(steps_per_epoch=10)
    assert next_save(config, task, done) == next_one
