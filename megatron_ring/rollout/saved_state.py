"""What of an RL run its checkpoints hold: saving it, going on from it, going back to it."""

from __future__ import annotations

from megatron_ring.checkpoint.manifest import read_manifest
from megatron_ring.checkpoint.saving import CheckpointSaver
from megatron_ring.config.checks import require
from megatron_ring.judging.cache import begin_again
from megatron_ring.model.routes import route_bytes
from megatron_ring.rollout.pool import RolloutPool
from megatron_ring.rollout.state import RLState
from megatron_ring.rollout.unfinished import load_unfinished, save_unfinished
from megatron_ring.run.alarms import Alarm
from megatron_ring.run.continuing import check_compositions
from megatron_ring.run.directory import plain
from megatron_ring.run.stage import latest_of, load_latest, set_first_weights
from megatron_ring.run.wandb_log import WandbLog


def save(run: RLState, saver: CheckpointSaver, steps: int, last: bool) -> None:
    """Save the state after `steps` steps, the last of this process or not."""
    with run.phases("save_wait"):
        saver.wait()  # before `policy.save`: until it is whole the one before it counts
        if run.directory.writes:
            begin_again(run.directory.replies)
        extra = {
            "prompts": run.stream.state_dict(),
            "budget": run.schedule.state_dict(),
            "policy": run.policy.save(),
            "watch": run.watch.state_dict(),
            "shaping": run.shaping.state_dict(),
            "compositions": run.compositions,
            "steps": run.config.steps,
            **run.directory.of_checkpoints,
        }
        files = save_unfinished(run.collector.pool, run.stage.context)
        saver.save(steps, run.stage.model, run.trainer.optimizer, extra, files=files, last=last)


def restore(run: RLState) -> int:
    """Go on from the last whole checkpoint, if there is one; the steps done, 0 without one."""
    start = _load(run)
    config, directory = run.config, run.directory
    if directory.writes and config.wandb.project is not None:
        directory.more_logs.append(WandbLog(config.wandb, directory.path, plain(config)))
    return start


def roll_back(run: RLState, alarms: list[Alarm]) -> int:
    """Go back to the last whole checkpoint, on with prompts that no step has seen; the steps done there. What is being saved
    must be whole."""
    run.sampler.weights_changed()
    reference = run.policy.reference
    if reference is not None and reference.step and not _saved_reference(run):  # it was refreshed behind the checkpoint
        set_first_weights(run.stage, run.config.init_from, run.config.seed)
        reference.start_over()
    run.phases.finish()  # the time of what is undone belongs to no step
    return _load(run, alarms)


def _saved_reference(run: RLState) -> int:
    """The step whose weights are the reference in the last whole checkpoint; 0: those that RL starts from."""
    checkpoint = latest_of(run.directory)
    return 0 if checkpoint is None else int(read_manifest(checkpoint)["extra"]["policy"]["reference"])


def _load(run: RLState, rolled_back_for: list[Alarm] | None = None) -> int:
    start = 0
    checkpoint = latest_of(run.directory)
    if checkpoint is not None:
        model, context = run.stage.model, run.stage.context
        require(
            {"prompts", "budget", "policy", "watch"} <= read_manifest(checkpoint)["extra"].keys(),
            f"{checkpoint}: not a checkpoint of an RL run: give it to --init-from of a new one",
        )
        start, extra = load_latest(run.directory, run.stage, run.trainer.optimizer, run.config.steps)
        check_compositions(run.compositions, extra)
        run.steps_before = extra.get("steps")
        run.stream.load_state_dict(extra["prompts"], keep_place=rolled_back_for is not None)
        run.schedule.load_state_dict(extra["budget"])
        run.policy.load(extra["policy"])
        run.shaping.load_state_dict(extra.get("shaping", {}))  # older checkpoints have none
        run.collector.pool = RolloutPool()  # what the rolled-back steps were sampling is not taken up again
        if rolled_back_for is not None:
            run.watch.rolled_back(rolled_back_for, extra["watch"], start)
        else:
            run.watch.load_state_dict(extra["watch"])
            run.collector.pool = load_unfinished(checkpoint, run.stream, run.collector.open, route_bytes(model), context)
    run.directory.start_logging(start)
    return start
