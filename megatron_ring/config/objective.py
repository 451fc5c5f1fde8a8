"""Configurations of what an RL step optimizes: objective, token budget, mismatch correction, reference. Imports no torch.

A setting whose default is None has another one for each objective or correction, which declares it in algorithm/: `resolved`
fills it in.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typing_extensions import Doc

from megatron_ring.algorithm.corrections import CORRECTIONS
from megatron_ring.algorithm.objectives import OBJECTIVES
from megatron_ring.config.checks import require
from megatron_ring.config.metadata import MAY_CHANGE

if TYPE_CHECKING:
    ObjectiveName = str
    CorrectionName = str
else:  # choices and help follow from what algorithm/ declares
    ObjectiveName = Literal[tuple(OBJECTIVES)]
    CorrectionName = Literal[("none", *CORRECTIONS)]


def _default_of(setting: str) -> str:
    """The default of a setting for the help: the most common one, then the objectives with another."""
    values = {name: getattr(objective.defaults, setting) for name, objective in OBJECTIVES.items()}
    common, _ = Counter(values.values()).most_common(1)[0]
    others = [f"{name} {_shown(value)}" for name, value in values.items() if value != common]
    return f"default: {'; '.join([_shown(common), *others])}"


def _shown(value: float | bool) -> str:
    return f"{value:g}" if not isinstance(value, bool) else "yes" if value else "no"


def _owners(declaration: str) -> str:
    return " or ".join(name for name, objective in OBJECTIVES.items() if getattr(objective, declaration))


WITH_BUDGET, WITH_LENGTH_BUDGET = _owners("has_budget"), _owners("has_length_budget")
"""The objectives that have one, for messages."""

_OBJECTIVES_HELP = f"""{"; ".join(f"{name}: {objective.summary}" for name, objective in OBJECTIVES.items())}. A token budget
belongs to {WITH_BUDGET}; the others train on all that is kept."""
_DYNAMIC_HELP = f"""Drop groups whose rewards are all equal and sample more prompts in their place
({_default_of("dynamic_sampling")})."""
_LENGTH_HELP = (
    f"The constant that {WITH_LENGTH_BUDGET} divides by (tokens; default: the longest response that sampling allows)."
)
_CORRECTIONS_HELP = "; ".join(f"{name}: {correction.summary}" for name, correction in CORRECTIONS.items())


def _given_or(defaults: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The settings that `defaults` names: what `config` says of each, or else its default."""
    return {name: default if getattr(config, name) is None else getattr(config, name) for name, default in defaults.items()}


@dataclass(frozen=True)
class BudgetConfig:
    """The token budget of a C3PO step: exactly so many response tokens carry gradient."""

    tokens: int = 409_600
    """Phi (response tokens)."""
    scope: Literal["global", "rank"] = "rank"
    """Whether Phi counts for the whole step, or per data-parallel rank and is multiplied by their number."""
    max_rounds: int = field(default=4, metadata=MAY_CHANGE)
    """Rounds of `prompts_per_step` prompts that a step may sample to reach Phi (or, with dynamic sampling, enough groups)
    before the run stops and says why."""
    max_cuts: int | None = None
    """C3PO++: sampling stops as soon as whole groups hold Phi; unfinished responses go on in the next step, and are dropped
    once more than so many updates have cut them (default: none are left unfinished)."""
    order: Literal["in-order", "random", "by-group", "by-advantage", "shortest-first", "longest-first"] = "in-order"
    """Which responses fill the budget first; in-order is the report's."""
    schedule: Literal["constant", "linear", "solve-rate"] = "constant"
    """Phi over the run: constant; linear from `tokens` at the first step to `final_tokens` at the last; or in between by
    the running share of solved responses."""
    final_tokens: int | None = None
    """Phi at the end of a schedule (response tokens)."""

    def __post_init__(self) -> None:
        require(self.tokens >= 1, f"--budget.tokens is {self.tokens}, below 1")
        require(self.max_rounds >= 1, f"--budget.max-rounds is {self.max_rounds}, below 1")
        require(self.max_cuts is None or self.max_cuts >= 1, f"--budget.max-cuts is {self.max_cuts}, below 1")
        if self.schedule == "constant":
            require(self.final_tokens is None, "--budget.final-tokens needs --budget.schedule linear or solve-rate")
        else:
            require(self.final_tokens is not None, f"--budget.schedule {self.schedule} needs --budget.final-tokens")
            require((self.final_tokens or 0) >= 1, f"--budget.final-tokens is {self.final_tokens}, below 1")

    def resolve(self, data_size: int) -> tuple[int, int]:
        """Phi of the whole step (tokens) at the start and at the end of the schedule."""
        scale = data_size if self.scope == "rank" else 1
        return self.tokens * scale, (self.final_tokens or self.tokens) * scale

    @property
    def is_set(self) -> bool:
        """Whether anything but `max_rounds` was chosen."""
        return dataclasses.replace(self, max_rounds=1) != BudgetConfig(max_rounds=1)


@dataclass(frozen=True)
class ObjectiveConfig:
    """The policy loss. Every formula is in docs/c3po.md."""

    name: Annotated[ObjectiveName, Doc(_OBJECTIVES_HELP)] = "c3po"
    clip: Annotated[float | None, Doc(f"Epsilon of the clipped ratio, below 1 ({_default_of('clip')}).")] = None
    clip_high: Annotated[
        float | None, Doc(f"Epsilon above 1 ({_default_of('clip_high')}; as clip where that is given).")
    ] = None
    kl_beta: float = 1e-3
    """Weight of the KL term to the reference policy (0: no term)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How the KL is estimated from sampled tokens."""
    kl_place: Literal["loss", "reward"] = "loss"
    """Whether the KL is a term of the loss, or is summed over a response and taken off its reward."""
    alpha_entropy: float = 5e-4
    """Weight of the entropy bonus."""
    baseline: Literal["mean", "leave-one-out"] = "mean"
    """What a reward is compared with: the mean of its group, or that of the group's other responses (RLOO)."""
    std: Annotated[bool | None, Doc(f"Divide advantages by the group's standard deviation ({_default_of('std')}).")] = None
    dynamic_sampling: Annotated[bool | None, Doc(_DYNAMIC_HELP)] = None
    old_logprobs: Literal["sampler", "recomputed"] = "sampler"
    """Denominator of the ratio: log-probs as the sampler recorded them, or of a training forward before the update."""
    length_budget: Annotated[int | None, Doc(_LENGTH_HELP)] = None

    def __post_init__(self) -> None:
        high = self.clip_high
        require(self.clip is None or 0 < self.clip < 1, f"--objective.clip is {self.clip}, outside (0, 1)")
        require(high is None or 0 < high < float("inf"), f"--objective.clip-high is {high}, not a positive number")
        require(self.kl_beta >= 0, f"--objective.kl-beta is {self.kl_beta}, below 0")
        require(
            self.length_budget is None or OBJECTIVES[self.name].has_length_budget,
            f"--objective.length-budget belongs to {WITH_LENGTH_BUDGET}, --objective.name is {self.name}",
        )
        require((self.length_budget or 1) >= 1, f"--objective.length-budget is {self.length_budget}, below 1")

    @property
    def has_budget(self) -> bool:
        """Whether a step trains on exactly the token budget."""
        return OBJECTIVES[self.name].has_budget

    def resolved(self, max_new_tokens: int) -> ObjectiveConfig:
        """The same with the objective's own defaults filled in."""
        objective = OBJECTIVES[self.name]
        defaults = dataclasses.asdict(objective.defaults)
        if self.clip is not None and objective.defaults.clip == objective.defaults.clip_high:
            defaults["clip_high"] = self.clip  # symmetric
        if objective.has_length_budget:
            defaults["length_budget"] = max_new_tokens
        return dataclasses.replace(self, **_given_or(defaults, self))


@dataclass(frozen=True)
class CorrectionConfig:
    """What is done about a sampler whose probabilities differ from the trainer's; k is the trainer's over the sampler's."""

    name: Annotated[CorrectionName, Doc(f"{_CORRECTIONS_HELP}.")] = "none"
    cap: float | None = None
    """Largest weight of tis (default: 2)."""
    low: float | None = None
    """Smallest k that icepop keeps, below 1 (default: 0.5)."""
    high: float | None = None
    """Largest k that icepop keeps, above 1 (default: 5)."""
    phi: float | None = None
    """Largest binary KL that kpop keeps (nats; default: 2)."""
    routes: Literal["ignore", "measure", "replay"] = "ignore"
    """The experts that the sampler chose for response tokens: ignored; compared with the trainer's own choice; or replayed
    in the trainer's passes in its place."""

    def __post_init__(self) -> None:
        for owner in CORRECTIONS:
            for name in correction_defaults(owner):
                given, flag = getattr(self, name), f"--correction.{name}"
                require(given is None or owner == self.name, f"{flag} belongs to {owner}, --correction.name is {self.name}")
                require(given is None or 0 < given < float("inf"), f"{flag} is {given}, not a positive number")
        own = _given_or(correction_defaults(self.name), self)
        cap, low, high = own.get("cap", 1), own.get("low", 0), own.get("high", 2)
        require(cap >= 1, f"--correction.cap is {cap}, below 1: no token would keep its weight")
        require(low < 1 < high, f"--correction.low {low} and --correction.high {high} must lie on either side of 1")

    def resolved(self) -> CorrectionConfig:
        """The same with the correction's own defaults filled in."""
        return dataclasses.replace(self, **_given_or(correction_defaults(self.name), self))


def correction_defaults(name: str) -> dict[str, Any]:
    """The constants of a correction with their defaults; they are fields of `CorrectionConfig`."""
    return {field.name: field.default for field in dataclasses.fields(CORRECTIONS[name])} if name in CORRECTIONS else {}


@dataclass(frozen=True)
class ReferenceConfig:
    """The policy that the KL term compares with: at first the weights that RL starts from."""

    place: Literal["device", "host", "none"] | None = field(default=None, metadata=MAY_CHANGE)
    """Where its weights wait: on the device, in (pinned) host memory, or there is none (default: device with a KL weight,
    else none)."""
    refresh_every: int | None = None
    """Steps after which the current weights become the reference (default: never)."""

    def __post_init__(self) -> None:
        every = self.refresh_every
        require(every is None or every >= 1, f"--reference.refresh-every is {every}, below 1")

    def resolved(self, kl_beta: float) -> ReferenceConfig:
        """The same with a place."""
        return dataclasses.replace(self, **_given_or({"place": "device" if kl_beta > 0 else "none"}, self))
