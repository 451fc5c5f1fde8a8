"""How an RL run begins: its data, its checks, and everything that lives from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_ring.algorithm.budget_schedule import BudgetSchedule
from megatron_ring.checkpoint.folder import latest_or_none
from megatron_ring.config.checks import require
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.config.shaping import ShapingConfig
from megatron_ring.data.fields import PROMPT_FIELDS, Fields
from megatron_ring.data.prompts import PromptStream, check_texts, longest_prompt, too_long
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.schedule import PromptSchedule, read_schedule
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import world_size_from_environment
from megatron_ring.parallel.device import free_memory
from megatron_ring.planning.sizes import cache_can_stay, choose_sizes, with_sizes_of
from megatron_ring.rewards.composition import fingerprint
from megatron_ring.rollout.collecting import Collector
from megatron_ring.rollout.evaluation import HeldOut
from megatron_ring.rollout.offload import SamplingOffload
from megatron_ring.rollout.policy_update import PolicyUpdate
from megatron_ring.rollout.scoring import check_prompts, idle
from megatron_ring.rollout.scoring_content import scorer_shapes, scoring_content
from megatron_ring.rollout.shaping import RewardShaping
from megatron_ring.rollout.state import RLState
from megatron_ring.run.continuing import changed_ranks, stretched_schedules
from megatron_ring.run.directory import RunDirectory, recorded_settings
from megatron_ring.run.phases import Phases
from megatron_ring.run.stage import Stage, dtype_of, open_model, open_run, resolve
from megatron_ring.run.wandb_log import check_wandb
from megatron_ring.run.watch import Watch
from megatron_ring.sampler.sampler import Sampler
from megatron_ring.training.trainer import Trainer


def open_rl(config: RLConfig) -> RLState:
    """The state of a run before its first step, in every process; the model has the weights that RL starts from.

    Raises:
        UserError: the configuration fits neither the layout, the model, the tokenizer, the data nor the run directory.
    """
    config, shape, tokenizer = resolve(config)
    prompts = read_prompts_of(config)
    free = collectives.gather_over_world(free_memory())
    limit = None if free[0] is None else min(size or 0 for size in free)
    config, sizes = collectives.from_main(lambda: choose(config, shape, prompts, tokenizer, limit))
    held_out = HeldOut(config, tokenizer)
    check_wandb(config.wandb)
    # It makes every long prompt into tokens: once for all processes.
    collectives.from_main(lambda: check_lengths(config, prompts, held_out, tokenizer, shape.max_positions))
    content = {f"rewards.{name}": known for name, known in scoring_content(config.rewards).items()}
    directory = open_run(config, {"data.tokenizer": tokenizer.fingerprint, **content})
    stage = open_model(config, shape, directory.first_weights)
    return _build(config, stage, directory, tokenizer, prompts, held_out, sizes)


@dataclass(frozen=True)
class ChosenSizes:
    """What was chosen beside the configuration's own sizes.

    Attributes:
        longest: prompt and response of the longest request, as far as it is known (tokens).
        told: what to say of the sizes that were chosen; "" where none was.
        keeps_cache: whether the KV cache stays while the policy is trained.
    """

    longest: int
    told: str
    keeps_cache: bool


def choose(
    config: RLConfig, shape: ModelConfig, prompts: PromptSchedule, tokenizer: RingTokenizer, limit: int | None
) -> tuple[RLConfig, ChosenSizes]:
    """The configuration with numbers for the sizes that are `auto`: those of the run so far, or else what fits.

    Args:
        limit: bytes that are free on the GPU of every process; None on CPUs.
    """
    config = with_sizes_of(config, recorded_settings(config.run_dir))
    records = [record for source in prompts.sources for record in source.records]
    longest = longest_prompt(records, tokenizer, config.data.instruction) + config.sampling.max_new_tokens
    longest = min(longest, shape.max_positions)
    world, itemsize = world_size_from_environment(), dtype_of(config).itemsize
    scorers = scorer_shapes(config.rewards)
    config, told = choose_sizes(config, shape, world, itemsize, longest, limit, scorers)
    config.check(config.parallel.data(world))  # as `resolve` does with given sizes
    keeps = limit is not None and cache_can_stay(config, shape, world, itemsize, longest, limit, scorers)
    return config, ChosenSizes(longest, told, keeps)


def read_prompts_of(config: RLConfig) -> PromptSchedule:
    """The prompts by stages. Raises `UserError` for a file that cannot be read, or whose responses could not be scored."""
    data = config.data
    fields = Fields.of(data, PROMPT_FIELDS, "--data.fields")
    prompts = read_schedule(data.prompts, data.min_solve_rate, data.max_solve_rate, fields)
    # A run that has begun cannot change its prompts; of the time before answers were checked it may have any.
    begun = collectives.from_main(lambda: latest_or_none(config.run_dir / "checkpoints")) is not None
    whole_groups = config.budget.max_cuts is None
    check_shaped(config.shaping, prompts.domains)
    check_prompts(prompts.sources, config.rewards, answers=not begun, whole_groups=whole_groups)
    return prompts


def check_shaped(config: ShapingConfig, domains: set[str]) -> None:
    """Raise `UserError` for a domain of --shaping.length-domains that no prompt has."""
    unknown = sorted(set(config.length_domains) - domains)
    require(not unknown, f"--shaping.length-domains {' '.join(unknown)}: none of {', '.join(sorted(domains))}")


def _build(
    config: RLConfig, stage: Stage, directory: RunDirectory, tokenizer: RingTokenizer, prompts: PromptSchedule,
    held_out: HeldOut, sizes: ChosenSizes,
) -> RLState:  # fmt: skip
    context, model, phases = stage.context, stage.model, Phases()
    floor = None if config.data.curriculum == "none" else config.data.curriculum_floor
    stream = PromptStream(prompts, config.seed, config.data.drop_after, floor)
    trainer = Trainer(model, context, config.optimizer)
    sampler = Sampler(
        model, context, config.sampling, tokenizer.eos_id, tokenizer.decode,
        note_routes=config.correction.routes != "ignore", keeps_cache=sizes.keeps_cache,
    )  # fmt: skip
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
        shaping=RewardShaping(config.shaping),
        notes=(
            *prompts.notes,
            *held_out.notes,
            *([sizes.told] if sizes.told else []),
            *idle(prompts.domains | held_out.domains, config.rewards, config.alarms),
        ),
        longest=sizes.longest,
        unreached=prompts.unreached(config.steps),
    )


def check_lengths(
    config: RLConfig, prompts: PromptSchedule, held_out: HeldOut, tokenizer: RingTokenizer, positions: int
) -> None:
    """Raise `UserError` for a prompt that cannot be asked, or leaves no room for the longest response in the model's
    `positions`."""
    sampling, evaluating = config.sampling.max_new_tokens, held_out.sampling.max_new_tokens
    records = [record for source in prompts.sources for record in source.records]

    def check(flag: str, records: Sequence[PromptRecord], room: int, response: str) -> None:
        check_texts(records, tokenizer, config.data.instruction)
        problem = too_long(records, tokenizer, config.data.instruction, room)
        require(problem is None, f"{flag}: {problem}, and {response} leave room for {max(0, room):,}")

    check("--data.prompts", records, min(config.data.capacity, positions) - sampling,
          f"--sampling.max-new-tokens {sampling:,}")  # fmt: skip
    check("--evaluation.prompts", [prompt.record for prompt in held_out.prompts], positions - evaluating,
          f"--evaluation.max-new-tokens {evaluating:,}")  # fmt: skip


def announce(run: RLState, start: int) -> None:
    """Say on the main process what the run is, and what changes where it goes on after `start` steps."""
    if not run.stage.context.is_main:
        return
    config, phi = run.config, run.budget(start)
    budget = f"Phi = {phi:,} tokens ({config.budget.scope}, {config.budget.schedule})" if phi else "no token budget"
    work = f"{config.prompts_per_step} prompts x {config.samples_per_prompt} samples, {config.objective.name}, {budget}"
    work += f", {config.updates_per_step} updates a step" if config.updates_per_step > 1 else ""
    print(f"rl: {work}" + (f", continuing after step {start}" if start else ""), flush=True)
    remarks = [*run.directory.notes, *run.notes, *changed_ranks(config, run.schedule)]
    remarks += stretched_schedules(config, run.schedule, start, run.steps_before) + run.unreached
    for remark in remarks:
        print(f"rl: {remark}", flush=True)
