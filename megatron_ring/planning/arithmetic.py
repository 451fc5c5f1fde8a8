"""What a step is made of, in words: layout, prompts and tokens, micro-batches, coefficients, schedule; (name, text) each."""

from __future__ import annotations

import math

from megatron_ring.config.declarations import parameter_counts, route_itemsize
from megatron_ring.config.epochs import EpochsConfig
from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.pretrain import PretrainConfig
from megatron_ring.config.reward_model import RewardModelConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.config.sft import SFTConfig
from megatron_ring.sampler.columns import TOKEN_BYTES

Line = tuple[str, str]


def layout_lines(model: ModelConfig, parallel: ParallelConfig, world: int, precision: str) -> list[Line]:
    """The model and who holds what of it."""
    total, activated = parameter_counts(model)
    experts = world // (parallel.pipeline * parallel.expert * parallel.expert_tensor)
    said = f"{world} GPU(s): TP={parallel.tensor} PP={parallel.pipeline} EP={parallel.expert} ETP={parallel.expert_tensor}"
    size = f"{total / 1e9:.2f} B parameters, {activated / 1e9:.2f} B activated"
    if total < 1e8:
        size = f"{total:,} parameters, {activated:,} activated"
    dtype = "bf16 (auto, as on GPUs)" if precision == "auto" else precision
    return [
        ("layout", f"{said}; {parallel.data(world)} data-parallel rank(s), {experts} for experts"),
        ("model", f"{model.num_layers} layers, {model.num_experts} experts; {size}; {dtype}"),
    ]


def optimizer_lines(optimizer: OptimizerConfig, router: RouterLossConfig, steps: int | None) -> list[Line]:
    """Learning rate and schedule; `steps` None where they depend on data that is not there."""
    warmup = (
        f"{optimizer.warmup_fraction:g} of all steps" if optimizer.warmup_steps is None else f"{optimizer.warmup_steps:,}"
    )
    if steps is not None:
        warmup = f"{optimizer.warmup(steps):,} of {steps:,} steps"
    shape = f"{optimizer.schedule} after a linear warm-up over {warmup}"
    if optimizer.schedule == "wsd":
        decay = "the last tenth" if steps is None else f"the last {optimizer.decay(steps):,}"
        shape += f", decay ({optimizer.decay_shape}) over {decay}"
    decay = f"weight decay {optimizer.weight_decay:g}, betas {optimizer.beta1:g} and {optimizer.beta2:g}"
    return [
        ("optimizer", f"AdamW, lr {optimizer.lr:g}, {shape}; {decay}, gradients clipped to {optimizer.clip_grad:g}"),
        ("router losses", f"alpha_balance {router.balance:g}, alpha_zloss {router.z:g}"),
    ]


def sampling_line(sampling: SamplingConfig) -> Line:
    cut = f"top-p {sampling.top_p:g}, top-k {sampling.top_k}, min-p {sampling.min_p:g}"
    return ("sampling", f"temperature {sampling.temperature:g}, {cut}, up to {sampling.max_new_tokens:,} new tokens")


def rl_lines(config: RLConfig, data: int, world: int, prompts: int | None, positions: int) -> list[Line]:
    """A step of reinforcement on `data` data-parallel ranks; `prompts` of the file, where it is there. `config` is
    resolved. `positions`: of the model."""
    asked, samples = config.prompts_per_step, config.samples_per_prompt
    responses = asked * samples
    share = f"{math.ceil(asked / data)} prompts = {math.ceil(asked / data) * samples} responses on each rank"
    room = min(config.data.capacity, positions)
    lines = [
        ("prompts", f"L = {asked:,} a round x K = {samples} samples = {responses:,} responses; {share}"),
        ("lengths", f"prompt and response within {room:,} tokens, responses up to {config.sampling.max_new_tokens:,}"),
        sampling_line(config.sampling),
        *_budget_lines(config, data, world, responses),
        ("objective", _objective(config)),
    ]
    if config.updates_per_step > 1:
        lines.append(("updates", _updates(config, data)))
    rounds = config.steps * asked
    epochs = f", {rounds / prompts:.2f} epochs of {prompts:,} prompts" if prompts else ""
    steps = f"{config.steps:,} steps, a checkpoint every {config.save_every}; {rounds:,} prompts at a round a step{epochs}"
    return [*lines, ("run", steps), *optimizer_lines(config.optimizer, config.router, config.steps)]


def rollouts_line(config: RLConfig, model: ModelConfig, data: int) -> Line:
    """Host memory of the responses that a data-parallel rank samples: all of one round, were each as long as it may be."""
    responses = math.ceil(config.prompts_per_step / data) * config.samples_per_prompt
    longest, parallel = config.sampling.max_new_tokens, config.parallel
    routes, told = 0, f"{TOKEN_BYTES} bytes a token"
    if config.correction.routes != "ignore":
        stages = (parallel.stage_layers(model.num_layers, stage) for stage in range(parallel.pipeline))
        layers = max(sum(model.is_moe_layer(layer) for layer in stage) for stage in stages)
        routes = layers * model.experts_per_token * route_itemsize(model)
        told += f" and {routes} of experts"
    size = responses * longest * (TOKEN_BYTES + routes)
    said = f"up to {size / (1 << 20):,.0f} MiB of host memory on each process while sampling, {told}"
    return ("rollouts", f"{said}; up to three times that while tokens go to the ranks that train on them")


def _budget_lines(config: RLConfig, data: int, world: int, responses: int) -> list[Line]:
    capacity = config.data.capacity
    most = responses * config.sampling.max_new_tokens
    if not config.objective.has_budget:
        fills = math.ceil(most / data / capacity)
        micro = f"{capacity:,} tokens; as many as the responses fill, up to {fills:,} on each rank"
        return [("token budget", f"none: all kept responses are trained, up to {most:,} tokens"), ("micro-batches", micro)]
    total, final = config.budget.resolve(data)
    scope = f"{config.budget.tokens:,} tokens for each of {data} data-parallel rank(s)"
    if config.budget.scope == "global":
        scope = f"{config.budget.tokens:,} tokens over all ranks"
    said = f"Phi = {scope} = {total:,} a step, {total // world:,} per GPU; {total / responses:,.0f} of each response"
    if final != total:
        said += f"; {config.budget.schedule} to {final:,}"
    least = micro_batches(config, data)
    micro = f"{capacity:,} tokens; at least {least} on each rank a step, as prompts and padding are packed besides"
    said += f", {config.budget.order}"
    if config.budget.max_cuts is not None:
        said += f"; sampling stops there, responses cut more than {config.budget.max_cuts} times are dropped"
    return [("token budget", said), ("micro-batches", micro)]


def micro_batches(config: RLConfig, data: int) -> int:
    """Micro-batches of a step on each rank, at least."""
    updates = config.updates_per_step
    if not config.objective.has_budget:
        return updates
    return updates * math.ceil(min(config.budget.resolve(data)) / updates / data / config.data.capacity)


def _updates(config: RLConfig, data: int) -> str:
    share = "whole responses, about as many tokens in each"
    if config.objective.has_budget:
        share = f"{min(config.budget.resolve(data)) / config.updates_per_step:,.0f} tokens each"
    return f"{config.updates_per_step} optimizer updates a step, {share}; one learning rate for all of a step"


def _objective(config: RLConfig) -> str:
    o, correction = config.objective, config.correction.name
    kl = f"KL beta {o.kl_beta:g} ({o.kl_estimator}, in the {o.kl_place})" if o.kl_beta else "no KL term"
    std = "divided by std" if o.std else "not divided by std"
    more = f", groups without a signal replaced, up to {config.budget.max_rounds} rounds" if o.dynamic_sampling else ""
    return (
        f"{o.name}, clip {o.clip:g} below and {o.clip_high:g} above, {kl}, alpha_entropy {o.alpha_entropy:g}; advantages "
        f"against the {o.baseline}, {std}; old log-probs {o.old_logprobs}, correction {correction}, sampler's "
        f"experts: {config.correction.routes}{more}"
    )


def sft_lines(config: SFTConfig, data: int, steps_per_epoch: int | None) -> list[Line]:
    """A step of fine-tuning; `steps_per_epoch` where the data is there."""
    return _epochs_lines(config, data, steps_per_epoch)


def _epochs_lines(config: EpochsConfig, data: int, steps_per_epoch: int | None) -> list[Line]:
    batch, context = config.data.global_batch, config.data.context_length
    steps, run = None, f"{config.epochs} epochs, a checkpoint after each"
    if steps_per_epoch is not None:
        steps = config.epochs * steps_per_epoch
        run += f"; {steps_per_epoch:,} steps an epoch, {steps:,} in all"
    if config.max_steps is not None:
        run += f"; stopped after {config.max_steps:,} steps"
    return [
        ("batch", f"{batch:,} packed sequences x {context:,} tokens = {batch * context:,} tokens a step"),
        _micro_batches(config, context, data),
        ("run", run),
        *optimizer_lines(config.optimizer, config.router, steps),
    ]


def _micro_batches(config: EpochsConfig | PretrainConfig, length: int, data: int) -> Line:
    """Those of a whole step; `length` of a packed sequence."""
    sizes = config.micro_batches(data)
    most = "up to " if sizes[0] > sizes[-1] else ""
    told = f"{most}{sizes[0] * length:,} tokens; {len(sizes)} on each of {data} data-parallel rank(s)"
    return ("micro-batches", told)


def pretrain_lines(config: PretrainConfig, data: int, steps: int | None) -> list[Line]:
    """A step of pretraining; `steps` where they are known."""
    corpus = config.data
    batch, length = corpus.global_batch, corpus.sequence_length
    size = f"{batch:,} sequences x {length:,} tokens = {batch * length:,} tokens a step"
    if corpus.ramp.start is not None:
        size += f", from {corpus.ramp.start:,} by {corpus.increment:,} over {corpus.ramp.samples:,} sequences"
    run = f"a checkpoint every {config.save_every:,} steps, a validation every {config.validation_every:,}"
    if steps is not None:
        most = "" if corpus.ramp.start is None else "up to "
        run = f"{steps:,} steps, {most}{steps * batch * length:,} tokens; {run}"
    crossing = "are reset at documents" if corpus.reset_at_document else "cross documents (--data.reset-at-document resets)"
    bias = f"; expert biases move by {config.router.bias_rate:g} a step" if config.router.bias_rate else ""
    lines = [
        ("batch", size),
        _micro_batches(config, length, data),
        ("documents", f"attention and positions {crossing}"),
        ("run", run),
        *optimizer_lines(config.optimizer, config.router, steps),
    ]
    return [(name, text + bias if name == "router losses" else text) for name, text in lines]


def reward_lines(config: RewardModelConfig, data: int, steps_per_epoch: int | None) -> list[Line]:
    """A step of a reward model; `steps_per_epoch` where the data is there."""
    centre = f"{config.centring:g} x (r_c + r_r)^2" if config.centring else "no centring"
    margin = {"none": "no margin", "column": "the file's margins", "strength": "the strength of preferences as margin"}
    said = margin[config.data.margin] + (f" x {config.data.margin_scale:g}" if config.data.margin != "none" else "")
    loss = f"-log sigmoid(r_c - r_r - m), {said}; {centre}; mean over pairs"
    batch, *rest = _epochs_lines(config, data, steps_per_epoch)
    return [batch, ("loss", loss), *rest]


def evaluate_lines(config: EvaluateConfig, data: int, problems: int | None) -> list[Line]:
    """What an evaluation samples."""
    samples = config.samples_per_problem
    said = f"{samples} response(s) to each problem, over {data} data-parallel rank(s)"
    if config.prompts is None:
        said = f"as many to each problem as its benchmark has it, over {data} data-parallel rank(s)"
    elif problems is not None:
        said = f"{problems:,} problems x {samples} = {problems * samples:,} responses over {data} data-parallel rank(s)"
    return [("responses", said), sampling_line(config.sampling)]
