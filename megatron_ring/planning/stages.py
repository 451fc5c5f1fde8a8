"""A dry run of each main: everything that can be checked is, then the plan is printed."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from megatron_ring.config.checks import require
from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.pretrain import PretrainConfig
from megatron_ring.config.reward_model import PreferenceDataConfig, RewardModelConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.config.sft import SFTConfig, SFTDataConfig
from megatron_ring.data.schedule import STAGE_FILES
from megatron_ring.errors import UserError, say
from megatron_ring.planning import arithmetic
from megatron_ring.planning.checks import Checks
from megatron_ring.planning.memory import GIB, OUTSIDE_TORCH, Item, StageMemory, Work, plan_memory
from megatron_ring.planning.packs import choose_packs, packed_work
from megatron_ring.planning.sizes import choose_sizes, rl_work

if TYPE_CHECKING:
    from megatron_ring.corpus.conversations import SFTDataset
    from megatron_ring.data.preference_data import PreferenceDataset
    from megatron_ring.data.tokenizer import RingTokenizer

UNKNOWN_PROMPT = 2047  # tokens allowed for a prompt, beside the one counted, where the prompts are not there
Precision = Literal["auto", "fp32", "bf16"]
EpochsRun = SFTConfig | RewardModelConfig
Planned = RLConfig | SFTConfig | PretrainConfig | RewardModelConfig | EvaluateConfig


class PackedFile(Protocol):
    """What is told of a file that is trained on in epochs."""

    note: str
    tokens: int
    steps_per_epoch: int


PackedRun = TypeVar("PackedRun", bound=EpochsRun | PretrainConfig)
EpochsData = TypeVar("EpochsData", bound=PackedFile)


def plan_rl(config: RLConfig) -> None:
    """Print the plan of a reinforcement run. Raises `UserError` where it cannot run, or would not fit."""
    config = config.resolved()
    checks, world = Checks(), planned_world(config)
    shape = checks.shape(None, config.init_from, "--init-from", config.plan.preset)
    data = _data_ranks(config.parallel, shape, world)
    config.check(data)
    config.check_model(shape)
    tokenizer = checks.tokenizer(config.data.tokenizer, "--data.tokenizer", shape, config.data.chat_template)
    whole_groups = config.budget.max_cuts is None
    prompts = checks.prompts(
        config.data.prompts, "--data.prompts", config.rewards, config.data, config.steps, whole_groups
    )  # fmt: skip
    prompt = checks.longest_prompt(prompts, tokenizer, config.data.instruction)
    if config.evaluation.prompts is not None:
        held = checks.prompts(config.evaluation.prompts, "--evaluation.prompts", config.rewards)
        longest = checks.longest_prompt(held, tokenizer, config.data.instruction)
        evaluating = config.evaluation.sampling(config.sampling).max_new_tokens
        checks.positions(shape, longest, evaluating, "--evaluation.max-new-tokens")
    longest = prompt + config.sampling.max_new_tokens
    checks.positions(shape, prompt, config.sampling.max_new_tokens)
    limit, scorers = int(config.plan.memory * 1e9), _scorers(config, checks)
    allowed = longest if prompt > 1 else min(longest + UNKNOWN_PROMPT, shape.max_positions)
    config, sizes = choose_sizes(config, shape, world, 4 if config.precision == "fp32" else 2, allowed, limit, scorers)
    capacity = config.data.capacity
    said = f"a prompt of {prompt:,} and --sampling.max-new-tokens {config.sampling.max_new_tokens:,}"
    require(longest <= capacity, f"{said} exceed --data.micro-batch-tokens {capacity:,}: lower the one or raise the other")
    work = rl_work(config, data, min(allowed, capacity))
    work = replace(work, scorers=scorers, offload_scorers=config.rewards.offload)
    epoch = len(prompts) if prompts and config.data.prompts.suffix not in STAGE_FILES else None
    lines = [
        *arithmetic.rl_lines(config, data, world, epoch, shape.max_positions),
        arithmetic.rollouts_line(config, shape, data),
    ]
    lines += [("sizes", sizes)] if sizes else []
    _report("rl", config, shape, world, lines, work, checks)


def _scorers(config: RLConfig, checks: Checks) -> dict[str, ModelConfig]:
    """Shapes of the models that lie beside the policy and score, by what they are called."""
    found = {}
    folder, judge = config.rewards.reward_model, config.rewards.judge.checkpoint
    if folder is not None:
        shape = checks.shape(None, folder, "--rewards.reward-model", config.plan.preset)
        said = f"--rewards.reward-model {folder}: has no score: give a reward model"
        require(shape.head == "score" or not folder.is_dir(), said)
        found["reward model"] = replace(shape, head="score")
    if judge is not None:
        shape = checks.shape(None, judge, "--rewards.judge.checkpoint", config.plan.preset)
        said = f"--rewards.judge.checkpoint {judge}: a reward model, which has no language head: give a language model"
        require(shape.head == "vocabulary" or not judge.is_dir(), said)
        found["judge"] = replace(shape, head="vocabulary")
    return found


def plan_sft(config: SFTConfig) -> None:
    """Print the plan of a fine-tuning run. Raises as `plan_rl`."""

    def load(data: SFTDataConfig, tokenizer: RingTokenizer, positions: int) -> tuple[SFTDataset, SFTDataset | None]:
        from megatron_ring.corpus.conversations import load_datasets

        return load_datasets(data, tokenizer, config.seed, positions, tell=functools.partial(say, "sft"))

    _plan_epochs(config, load, lambda data: f"{data.sequences:,} conversations", arithmetic.sft_lines)


def plan_reward(config: RewardModelConfig) -> None:
    """Print the plan of a reward model's run. Raises as `plan_rl`."""

    def load(
        data: PreferenceDataConfig, tokenizer: RingTokenizer, positions: int
    ) -> tuple[PreferenceDataset, PreferenceDataset | None]:
        from megatron_ring.data.preference_data import load_preferences

        return load_preferences(data, tokenizer, config.seed, positions)

    _plan_epochs(config, load, lambda data: f"{len(data.pairs):,} pairs", arithmetic.reward_lines)


def _plan_epochs(
    config: EpochsRun, load: Callable[[Any, RingTokenizer, int], tuple[EpochsData, EpochsData | None]],
    told: Callable[[EpochsData], str], lines: Callable[[Any, int, int | None], list[arithmetic.Line]],
) -> None:  # fmt: skip
    """The plan of a run in epochs over a file.

    Args:
        load: the packed training and validation files, of the configuration of data, the tokenizer and the positions.
        told: how much there is in a file.
        lines: the plan's, of configuration, data-parallel ranks and steps of an epoch.
    """
    checks, world = Checks(), planned_world(config)
    shape = config.extended(
        checks.shape(config.preset, config.init_from, "--init-from", config.plan.preset, config.extended)
    )
    ranks = _data_ranks(config.parallel, shape, world)
    config.check(ranks)
    tokenizer = checks.tokenizer(config.data.tokenizer, "--data.tokenizer", shape, config.data.chat_template)
    steps = None
    missing = [path for path in (config.data.train, config.data.validation) if path is not None and not path.exists()]
    checks.left += [f"{path}: not there" for path in missing]
    if tokenizer is not None and config.data.train not in missing:
        readable = replace(config.data, validation=None) if missing else config.data
        train, validation = load(readable, tokenizer, shape.max_positions)
        steps = train.steps_per_epoch
        checks.done += [part.note for part in (train, validation) if part is not None and part.note]
        checks.done.append(f"--data.train {config.data.train}: {told(train)} of {train.tokens:,} tokens")
        if validation is not None:
            checks.done.append(f"--data.validation {config.data.validation}: {told(validation)}")
    _plan_packs(config, shape, world, lambda config: lines(config, ranks, steps), checks)


def _plan_packs(
    config: PackedRun, shape: ModelConfig, world: int, lines: Callable[[PackedRun], list[arithmetic.Line]], checks: Checks
) -> None:
    """Choose how many packed sequences go together, and print the plan. `lines`: of the configuration with that."""
    itemsize, limit = 4 if config.precision == "fp32" else 2, int(config.plan.memory * 1e9)
    config, sizes = choose_packs(config, shape, world, itemsize, limit)
    plan = [*lines(config), *([("sizes", sizes)] if sizes else [])]
    _report(config.stage_name, config, shape, world, plan, packed_work(config, config.parallel.data(world)), checks)


def plan_pretrain(config: PretrainConfig) -> None:
    """Print the plan of a pretraining run. Raises as `plan_rl`."""
    checks, world, corpus = Checks(), planned_world(config), config.data
    shape = config.extended(checks.shape(config.preset, config.init_from, "--init-from", config.plan.preset))
    data = _data_ranks(config.parallel, shape, world)
    config.check(data)
    config.check_model(shape)
    tokenizer = checks.tokenizer(corpus.tokenizer, "--data.tokenizer", shape)
    steps = config.steps
    missing = checks.corpora(corpus)
    if tokenizer is not None and not missing:
        from megatron_ring.corpus.blends import Place
        from megatron_ring.corpus.mixing import open_corpora, steps_left

        corpora = open_corpora(corpus, tokenizer)
        blend = corpora.blend(corpus.sequence_length, one_epoch=steps is None)
        found = steps_left(blend, Place(), corpus)
        require(
            steps is not None or found is not None,
            "--steps: give the steps of the run; the corpora have no epochs that would tell them",
        )
        steps = steps or found
        for entry, source in (*corpora.trained, *corpora.validated):
            checks.done.append(f"{source.prefix} ({entry.name}): {source.documents:,} documents, {source.tokens:,} tokens")
    if steps is not None:
        config.check_steps(steps)
    _plan_packs(config, shape, world, lambda config: arithmetic.pretrain_lines(config, data, steps), checks)


def plan_evaluate(config: EvaluateConfig) -> None:
    """Print the plan of an evaluation. Raises as `plan_rl`."""
    checks, world = Checks(), planned_world(config)
    shape = checks.shape(None, config.checkpoint, "--checkpoint", config.plan.preset)
    data = _data_ranks(config.parallel, shape, world)
    tokenizer = checks.tokenizer(config.tokenizer, "--tokenizer", shape, config.chat_template)
    prompts = None
    if config.prompts is not None:  # of benchmarks the evaluation itself says more
        prompts = checks.prompts(config.prompts, "--prompts", config.rewards, columns=config)
    prompt = checks.longest_prompt(prompts, tokenizer, config.instruction)
    checks.positions(shape, prompt, config.sampling.max_new_tokens)
    requests = config.sampling.most_rows("cuda")
    if prompts:
        requests = -(-len(prompts) // data) * config.samples_per_problem
    work = Work(sampling=config.sampling, requests=requests, longest=prompt + config.sampling.max_new_tokens)
    lines = arithmetic.evaluate_lines(config, data, len(prompts) if prompts else None)
    _report("evaluate", config, shape, world, lines, work, checks)


def planned_world(config: Planned) -> int:
    """GPUs of the planned run."""
    return config.plan.world or int(os.environ.get("WORLD_SIZE", "1"))


def _data_ranks(parallel: ParallelConfig, shape: ModelConfig, world: int) -> int:
    parallel.check(shape, world)
    return parallel.data(world)


def _report(
    stage: str, config: Planned, shape: ModelConfig, world: int,
    lines: list[arithmetic.Line], work: Work, checks: Checks,
) -> None:  # fmt: skip
    """Print, then refuse what does not fit."""
    config.check_head(shape)
    if config.exact:
        config.parallel.check_exact(config.layer_impl)
        require(config.precision != "fp32", "--exact: its kernels want --precision bf16")
    limit = int(config.plan.memory * 1e9)
    itemsize = 4 if config.precision == "fp32" else 2
    memory = plan_memory(shape, config.parallel, world, itemsize, work, limit)
    if os.environ.get("RANK", "0") == "0":
        print(f"dry run of {stage}: nothing is started")
        for name, text in [*arithmetic.layout_lines(shape, config.parallel, world, config.precision), *lines]:
            print(f"  {name:<15} {text}")
        _print_memory(memory, config, limit)
        if config.layer_impl == "te":
            print("  (activations are those of the native layers; Transformer Engine's were larger where measured)")
        for title, notes in (("checked", checks.done), ("not checked", checks.left)):
            for note in notes:
                print(f"{title}: {note}")
    _refuse(memory, config, limit)


def _print_memory(memory: StageMemory, config: Planned, limit: int) -> None:
    dense, experts = memory.state.parameters
    where = f"pipeline stage {memory.stage + 1} of {config.parallel.pipeline}"
    print(f"memory of a GPU, GiB ({where}: {dense + experts:,} parameters, {experts:,} of them experts')")
    phases = [(name, items) for name, items in (("training", memory.training), ("sampling", memory.sampling)) if items]
    rows = [("", item) for item in memory.held] + [(f"{name}: ", item) for name, items in phases for item in items]
    rows.append(("", Item("outside torch", OUTSIDE_TORCH, "allowance: CUDA, NCCL, workspaces, fragmentation")))
    for prefix, item in rows:
        print(f"  {prefix + item.name:<28} {item.size / GIB:7.2f}  {item.note}".rstrip())
    peaks = {"training": memory.training_peak, "sampling": memory.sampling_peak}
    for name, _ in phases:
        print(f"  {'peak in ' + name:<28} {(peaks[name] + OUTSIDE_TORCH) / GIB:7.2f}  of {limit / GIB:.1f} "
              f"({config.plan.memory:g} GB)")  # fmt: skip


def _refuse(memory: StageMemory, config: Planned, limit: int) -> None:
    cache = memory.cache
    mends = ["more GPUs with a larger --parallel.expert or --parallel.tensor"]
    if not isinstance(config, EvaluateConfig) and config.recompute != "full":
        mends.append("--recompute full")
    if isinstance(config, RLConfig) and config.reference.place == "device":
        mends.append("--reference.place host")
    if isinstance(config, RLConfig) and not config.offload_optimizer and memory.training_peak + OUTSIDE_TORCH <= limit:
        mends.append("--offload-optimizer")
    given = f"--plan.memory {config.plan.memory:g} GB is {limit / GIB:.1f}"
    require(
        memory.needed <= limit,
        f"does not fit: {memory.needed / GIB:.1f} GiB are needed on a GPU of pipeline stage {memory.stage + 1}, {given}: "
        f"try {' or '.join(mends)}",
    )
    if cache is not None and cache.tokens < cache.longest:
        raise UserError(
            f"does not fit: the KV cache holds {cache.tokens:,} tokens, the longest response and its prompt are "
            f"{cache.longest:,}: raise --sampling.kv-tokens or --sampling.kv-fraction, or try {' or '.join(mends)}"
        )
