"""How an RL run begins: its data, its checks, and everything that lives from step to step."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ring.algorithm.budget_schedule import BudgetSchedule
from megatron_ring.checkpoint.saving import latest_checkpoint
from megatron_ring.config.checks import require
from megatron_ring.config.rl import RLConfig
from megatron_ring.data.prompts import PromptStream, too_long
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.schedule import PromptSchedule, read_schedule
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import world_size_from_environment
from megatron_ring.rewards.composition import fingerprint
from megatron_ring.rollout.collecting import Collector
from megatron_ring.rollout.evaluation import HeldOut
from megatron_ring.rollout.offload import SamplingOffload
from megatron_ring.rollout.policy_update import PolicyUpdate
from megatron_ring.rollout.scoring import check_prompts
from megatron_ring.rollout.state import RLState
from megatron_ring.run.continuing import changed_ranks, stretched_schedules
from megatron_ring.run.directory import RunDirectory
from megatron_ring.run.phases import Phases
from megatron_ring.run.stage import Stage, resolve_shape, set_first_weights, start_stage
from megatron_ring.run.wandb_log import check_wandb
from megatron_ring.run.watch import Watch
from megatron_ring.sampler.sampler import Sampler
from megatron_ring.training.trainer import Trainer


def open_rl(config: RLConfig, may_differ: frozenset[str]) -> RLState:
    """The state of a run before its first step, in every process; the model has the weights that RL starts from.

    Args:
        config: resolved.
        may_differ: settings that a continued run may change.

    Raises:
        UserError: the configuration fits neither the layout, the model, the tokenizer, the data nor the run directory.
    """
    shape = resolve_shape(None, config.init_from)
    config.check(max(1, config.parallel.data(world_size_from_environment())))
    tokenizer = RingTokenizer.load(config.data.tokenizer)
    require(
        tokenizer.vocab_size <= shape.vocab_size,
        f"--data.tokenizer: {tokenizer.vocab_size} tokens, the model has only {shape.vocab_size}",
    )
    config.check_model(shape)
    prompts = read_prompts_of(config)
    held_out = HeldOut(config, tokenizer)
    check_wandb(config.wandb)
    stage = start_stage(
        shape, config.parallel, config.router, config.seed, config.precision, config.layer_impl, config.recompute,
        config.exact,
    )  # fmt: skip
    check_lengths(config, prompts, held_out, tokenizer, shape.max_positions, stage.context.is_main)
    directory = RunDirectory(config.run_dir, writes=stage.context.is_main)
    directory.open("rl", config, may_differ)
    set_first_weights(stage, config.init_from, config.seed)
    return _build(config, stage, directory, tokenizer, prompts, held_out)


def read_prompts_of(config: RLConfig) -> PromptSchedule:
    """The prompts by stages. Raises `UserError` for a file that cannot be read, or whose responses could not be scored."""
    data = config.data
    prompts = read_schedule(data.prompts, data.min_solve_rate, data.max_solve_rate)
    # A run that has begun cannot change its prompts; of the time before answers were checked it may have any.
    begun = latest_checkpoint(config.run_dir / "checkpoints") is not None
    whole_groups = config.budget.max_cuts is None
    check_prompts(prompts.sources, config.rewards, answers=not begun, whole_groups=whole_groups)
    return prompts


def _build(
    config: RLConfig, stage: Stage, directory: RunDirectory, tokenizer: RingTokenizer, prompts: PromptSchedule,
    held_out: HeldOut,
) -> RLState:  # fmt: skip
    context, model, phases = stage.context, stage.model, Phases()
    floor = None if config.data.curriculum == "none" else config.data.curriculum_floor
    stream = PromptStream(prompts, config.seed, config.data.drop_after, floor)
    trainer = Trainer(model, context, config.optimizer)
    sampler = Sampler(
        model, context, config.sampling, tokenizer.eos_id, tokenizer.decode, note_routes=config.correction.routes != "ignore"
    )
    model.router_losses.replay = config.correction.routes == "replay"
    composed = config.rewards.compositions
    return RLState(
        config=config,
        stage=stage,
        directory=directory,
        tokenizer=tokenizer,
        stream=stream,
        schedule=BudgetSchedule(config.budget.schedule, *config.budget.resolve(context.data_size)),
        trainer=trainer,
        sampler=sampler,
        # Copies the weights as the reference: before any later ones.
        policy=PolicyUpdate(config, trainer, tokenizer.pad_id, directory.path / "reference"),
        collector=Collector(config, stream, sampler, tokenizer, phases),
        held_out=held_out,
        watch=Watch(config.alarms, speaks=context.is_main),
        phases=phases,
        offload=SamplingOffload(trainer.offload if config.offload_optimizer else None, sampler, phases),
        compositions=None if composed is None else fingerprint(composed),
        domains=prompts.domains | held_out.domains,
        several_domains=len(prompts.domains) > 1,
        unreached=prompts.unreached(config.steps),
    )


def check_lengths(
    config: RLConfig, prompts: PromptSchedule, held_out: HeldOut, tokenizer: RingTokenizer, positions: int, is_main: bool
) -> None:
    """Raise `UserError`, on every rank, for a prompt that leaves no room for the longest response. The main process reads
    them."""
    problem = None
    if is_main:
        sampling, evaluating = config.sampling.max_new_tokens, held_out.sampling.max_new_tokens
        room = min(config.data.micro_batch_tokens, positions) - sampling
        records = [record for source in prompts.sources for record in source.records]
        problem = _too_long(
            "--data.prompts", records, room, f"--sampling.max-new-tokens {sampling:,}", tokenizer, config.data.instruction
        ) or _too_long(
            "--evaluation.prompts", [prompt.record for prompt in held_out.prompts], positions - evaluating,
            f"--evaluation.max-new-tokens {evaluating:,}", tokenizer, config.data.instruction,
        )  # fmt: skip
    problem = collectives.gather_over_world(problem)[0]
    require(problem is None, str(problem))


def _too_long(
    flag: str, records: Sequence[PromptRecord], room: int, takes_room: str, tokenizer: RingTokenizer, instruction: str | None
) -> str | None:
    prompt = too_long(records, tokenizer, instruction, room)
    return None if prompt is None else f"{flag}: {prompt}, and {takes_room} leave room for {max(0, room):,}"


def announce(run: RLState, start: int) -> None:
    """Say on the main process what the run is, and what changes where it goes on after `start` steps."""
    if not run.stage.context.is_main:
        return
    config, phi = run.config, run.budget(start)
    budget = f"Phi = {phi:,} tokens ({config.budget.scope}, {config.budget.schedule})" if phi else "no token budget"
    work = f"{config.prompts_per_step} prompts x {config.samples_per_prompt} samples, {config.objective.name}, {budget}"
    print(f"rl: {work}" + (f", continuing after step {start}" if start else ""), flush=True)
    remarks = changed_ranks(config, run.schedule)
    remarks += stretched_schedules(config, run.schedule, start, run.steps_before) + run.unreached
    for remark in remarks:
        print(f"rl: {remark}", flush=True)
